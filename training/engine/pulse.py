"""What ranks tell each other of where they are, and who is at fault when nothing goes on. Pure."""

import json
import sys
import threading
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from types import FrameType

FRAMES = 12  # of a stack that are shown, the innermost ones
# Where Python stands while a rank waits for others: in a collective, or in a backward pass that
# averages gradients.
WAITING_PLACES = ("/torch/distributed/", "/torch/autograd/", "/deepspeed/comm/")
CALLS = "/torch/nn/modules/module.py"  # between a module and its parts; says nothing
READERS = "read-ahead"  # names of the threads that read begin so


class Phase(IntEnum):
    """What a rank does, in the order in which it does so before and between updates."""

    starting = 0
    validating = 1
    saving = 2
    reading = 3
    computing = 4


@dataclass(frozen=True, slots=True)
class Pulse:
    """A rank's word on itself.

    Args:
        count: How many it has given; tells a rank that lives.
        step: Updates made.
        phase: What it does.
        quiet: Seconds since it last got on, by its own clock.
        stack: Where its main thread is, innermost first.
        waits: Whether that is where one rank waits for others.
        host: Name of its machine.
        process: Number of its process on that machine.
        mark: Of its process, as `data.process.process_mark` gives it.
        done: Whether it has left the loop.
    """

    count: int
    step: int
    phase: Phase
    quiet: float
    stack: str
    waits: bool
    host: str
    process: int
    mark: str
    done: bool = False

    @property
    def position(self) -> tuple[int, Phase]:
        """Grows as a rank gets on."""
        return self.step, self.phase

    def __str__(self) -> str:
        return f"step {self.step}, {self.phase.name}, at {self.stack}"

    def dump(self) -> bytes:
        """As bytes for a store."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, text: bytes) -> "Pulse":
        """What `dump` has written."""
        fields = json.loads(text)
        return cls(**{**fields, "phase": Phase(fields["phase"])})


def verdict(ranks: Mapping[int, Pulse], silent: Collection[int], size: int) -> str:
    """Who keeps all others waiting, and where it is, in one line.

    A rank that gives no sign of life; else those that are behind the others; of ranks that are all
    equally far, those that do not wait in a collective; else nobody in particular.

    Args:
        ranks: The last pulse of every rank that ever gave one.
        silent: Ranks that no longer give any.
        size: Number of ranks.
    """
    unseen = sorted(set(range(size)) - ranks.keys())
    if silent or unseen:
        gone = [
            f"{_name(r, ranks)} has given no sign of life since {ranks[r]}" for r in sorted(silent)
        ]
        return "; ".join(gone + [f"rank {r} has never given a sign of life" for r in unseen])
    alive = {rank: pulse for rank, pulse in ranks.items() if not pulse.done}
    positions = [pulse.position for pulse in alive.values()]
    behind = [rank for rank, pulse in alive.items() if pulse.position == min(positions)]
    if len(behind) < len(alive):
        step, phase = max(positions)
        return f"{_stuck(behind, ranks)}; others wait in step {step}, {phase.name}"
    working = [rank for rank in alive if not alive[rank].waits]
    if working and len(working) < len(alive):
        return _stuck(working, ranks) + "; others wait for it"
    return "no rank is behind the others: " + _stuck(sorted(alive), ranks)


def _stuck(ranks: Collection[int], pulses: Mapping[int, Pulse]) -> str:
    return "; ".join(f"{_name(r, pulses)} is still in {pulses[r]}" for r in sorted(ranks))


def _name(rank: int, pulses: Mapping[int, Pulse]) -> str:
    return f"rank {rank} ({pulses[rank].host})"


def main_stack() -> tuple[str, bool]:
    """Where this process's main thread is, and whether that is where one waits for other ranks."""
    frame = sys._current_frames()[_main_thread()]
    waits = any(place in frame.f_code.co_filename for place in WAITING_PLACES)
    return stack_text(frame), waits


def reading_stacks() -> str:
    """Where this process's threads that read are, as far as they have something to do."""
    frames = sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    busy = [
        stack_text(frame)
        for number, frame in frames.items()
        if names.get(number, "").startswith(READERS) and frame.f_code.co_name != "_worker"
    ]
    return ", and ".join(dict.fromkeys(busy))


def stack_text(frame: FrameType | None) -> str:
    """A stack in one line, its innermost functions first: `read (data/tar.py:5) < ...`."""
    parts: list[str] = []
    while frame is not None and len(parts) < FRAMES:
        file = frame.f_code.co_filename
        if not file.endswith(CALLS):
            short = "/".join(Path(file).parts[-2:])
            parts.append(f"{frame.f_code.co_name} ({short}:{frame.f_lineno})")
        frame = frame.f_back
    return " < ".join(parts)


def _main_thread() -> int:
    number = threading.main_thread().ident
    assert number is not None
    return number
