"""What a person sees of a long command: a bar or lines, and a summary kept."""

import json
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from data.say import say
from data.storage import Prefix

SECONDS_BETWEEN_LINES = 10.0
SUMMARY = "summary.json"


class Meter:
    """Counts what is done and shows it.

    Args:
        name: What is being done.
        total: Samples in all.
        done: Samples done before, by an earlier run of the same command.
        unit: What is counted.
        shown: False on all ranks but one.
    """

    def __init__(self, name: str, total: int, done: int, unit: str, shown: bool) -> None:
        self.name, self.total, self.done, self.unit, self.shown = name, total, done, unit, shown
        self.first = done
        self.started = self.printed = time.perf_counter()
        self.bar = _bar() if shown and sys.stdout.isatty() else None
        if self.bar:
            self.task = self.bar.add_task(name, total=total, completed=done, below="")
            self.bar.start()

    @property
    def rate(self) -> float:
        """Samples per second since the start of this process's part."""
        return (self.done - self.first) / max(time.perf_counter() - self.started, 1e-9)

    @property
    def seconds_left(self) -> float:
        """Seconds to go at that rate."""
        return (self.total - self.done) / max(self.rate, 1e-9)

    def advance(self, count: int, note: str = "") -> None:
        """Count `count` more samples; `note` stands below the bar."""
        self.done += count
        if not self.shown:
            return
        rate = f"{self.rate:,.0f} {self.unit}/s"
        if self.bar:
            below = f"{rate}, {note}" if note else rate
            self.bar.update(self.task, completed=self.done, below=below)
        elif time.perf_counter() - self.printed > SECONDS_BETWEEN_LINES:
            self.printed = time.perf_counter()
            say(
                f"{self.name}: {self.done:,} of {self.total:,} {self.unit}, {rate}, "
                f"{self.seconds_left:,.0f} s to go" + (f"; {note}" if note else "")
            )

    def close(self) -> None:
        """Take the bar off the screen."""
        if self.bar:
            self.bar.stop()


@contextmanager
def progress(
    name: str, total: int, done: int = 0, unit: str = "images", shown: bool = True
) -> Iterator[Meter]:
    """A `Meter` for the length of a block."""
    meter = Meter(name, total, done, unit, shown)
    try:
        yield meter
    finally:
        meter.close()


def write_summary(
    out: Prefix,
    command: str,
    samples: int,
    seconds: float,
    peak_memory: int,
    rank: str = "",
    **more: Any,
) -> None:
    """Add this process's part of a command to the record that lies beside its output, and print it.

    Args:
        out: Where the command wrote.
        command: The command's name.
        samples: Samples that it worked on.
        seconds: Wall-clock seconds.
        peak_memory: Bytes, of the processes that the command counts.
        rank: Which of several that work at the same time, such as 2-of-8; each has its own file.
        more: Further figures, JSON-ready.
    """
    part = {
        "command": command,
        "samples": samples,
        "seconds": round(seconds, 3),
        "peak_memory": peak_memory,
        **({"rank": rank} if rank else {}),
        **more,
    }
    name = f"summary-{rank}.json" if rank else SUMMARY
    parts = [*_parts(out, name), part]
    out.write(name, json.dumps(parts, indent=1).encode() + b"\n")
    rate = samples / max(seconds, 1e-9)
    say(
        f"{command}: {samples:,} images in {seconds:,.1f} s ({rate:,.0f} images/s), "
        f"peak memory {peak_memory / 1e9:.2f} GB, wrote {out.url}"
    )


def read_summary(out: Prefix) -> list[dict[str, Any]]:
    """The parts that earlier processes recorded; none if there are none."""
    names = (name for name in out.names() if re.fullmatch(r"summary(-\d+-of-\d+)?\.json", name))
    return [part for name in names for part in _parts(out, name)]


def _parts(out: Prefix, name: str) -> list[dict[str, Any]]:
    try:
        parts: list[dict[str, Any]] = json.loads(out.read(name))
    except FileNotFoundError:
        return []
    return parts


def peak_memory() -> int:
    """Peak resident bytes of this process plus its largest finished child."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (own + child) * 1024


class _Bar(Progress):
    """A bar, and below it what would not fit beside it."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """The lines, top down."""
        yield from super().get_renderables()
        for task in self.tasks:
            yield Text(task.fields["below"])


def _bar() -> _Bar:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return _Bar(*columns, TimeRemainingColumn(), console=Console())
