"""A training of several ranks that is killed again and again.

The ranks are forks of one interpreter that has imported everything: a life begins in a tenth of the
time of a fresh one. Nothing is computed, and no thread started, before the fork.
"""

import os
import random
import signal
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.latents import train_small
from tests.helpers.processes import free_ports

SECONDS_TO_NOTICE = 20.0  # that a rank whose peer is gone has to end by itself


@dataclass(frozen=True, slots=True)
class Kill:
    """One life's end.

    Args:
        rank: Which rank was killed.
        after: Updates of this life, before it was.
        code: How the other ranks ended, by themselves; None if they had to be killed.
    """

    rank: int
    after: int
    code: int | None


def train_through_kills(
    latents: Path, out: Path, settings: Sequence[str], ranks: int, kills: int, seed: int
) -> list[Kill]:
    """For `run_ranks` with one rank: trains to the end, killed with -9 at random on the way.

    Args:
        latents: The dataset.
        out: The run.
        settings: Of the training.
        ranks: How many.
        kills: How often one of them is killed.
        seed: Of when and which.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"
    import accelerate  # noqa: F401
    import deepspeed  # noqa: F401

    chance = random.Random(seed)
    found: list[Kill] = []
    while len(found) < kills:
        life = _Life(latents, out, settings, ranks)
        victim, steps = chance.randrange(ranks), chance.randrange(1, 7)
        made = life.wait_for_updates(victim, steps)
        if made < steps:
            raise AssertionError(f"ended by itself after {len(found)} kills: {life.end(60)}")
        time.sleep(chance.random() * 0.04)  # within a step, or what is done after it
        os.kill(life.numbers[victim], signal.SIGKILL)
        codes = life.end(SECONDS_TO_NOTICE)
        others = [code for rank, code in enumerate(codes) if rank != victim]
        found.append(Kill(victim, made, others[0] if others else None))
    codes = _Life(latents, out, settings, ranks).end(120)
    assert codes == [0] * ranks, codes
    return found


class _Life:
    """One start of all ranks."""

    def __init__(self, latents: Path, out: Path, settings: Sequence[str], ranks: int) -> None:
        port = free_ports(1)[0]
        self.numbers: list[int] = []
        self._pipes: list[int] = []
        for rank in range(ranks):
            read, write = os.pipe()
            number = os.fork()
            if not number:
                os.close(read)
                os._exit(_be_rank(rank, ranks, port, write, latents, out, settings))
            os.close(write)
            self.numbers.append(number)
            self._pipes.append(read)

    def wait_for_updates(self, rank: int, count: int) -> int:
        """Updates that a rank has made once they are enough, or it has ended."""
        made = 0
        while made < count and os.read(self._pipes[rank], 1):
            made += 1
        return made

    def end(self, seconds: float) -> list[int | None]:
        """The exit codes of all ranks; None of those that had to be killed after a while."""
        until = time.monotonic() + seconds
        codes: list[int | None] = [None] * len(self.numbers)
        alive = dict(enumerate(self.numbers))
        while alive:
            for rank, number in list(alive.items()):
                gone, status = os.waitpid(number, os.WNOHANG)
                if gone:
                    codes[rank] = os.waitstatus_to_exitcode(status)
                    del alive[rank]
            if time.monotonic() > until:
                for number in alive.values():
                    os.kill(number, signal.SIGKILL)
                    os.waitpid(number, 0)
                break
            time.sleep(0.005)
        for pipe in self._pipes:
            os.close(pipe)
        return codes


def _be_rank(
    rank: int,
    ranks: int,
    port: int,
    told: int,
    latents: Path,
    out: Path,
    settings: Sequence[str],
) -> int:
    from training.engine.strategy import Engine

    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ.update({name: str(value) for name, value in places.items()})
    os.environ["MASTER_PORT"] = str(port)
    update = Engine.update

    def counted(*arguments: Any, **more: Any) -> Any:
        done = update(*arguments, **more)
        os.write(told, b".")
        return done

    Engine.update = counted  # type: ignore[method-assign]
    try:
        train_small(latents, out, *settings)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
