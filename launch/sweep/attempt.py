"""One process of one trial: started, watched by its metrics, told to end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from conf.errors import Diverged, Preempted
from conf.schema import SweepEvaluateCommand, SweepTrainCommand
from data.process import usable_cores
from launch.local import LDM, PARENT
from launch.sweep.gpus import VISIBLE
from launch.sweep.record import Outcome

SAID = "ldm: "  # with what the last line of a command that fails begins


class Attempt:
    """A command in a process of its own, which dies with this one.

    Args:
        arguments: Of `ldm`.
        log: Where its output is added.
        threads: That it computes with, unless the environment says how many.
        gpus: That it may use, as CUDA names them; None leaves it all that this process may use.
    """

    def __init__(
        self, arguments: list[str], log: Path, threads: int, gpus: list[str] | None
    ) -> None:
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, PARENT: str(os.getpid())}
        if gpus is not None:
            environment[VISIBLE] = ",".join(gpus)
        self.began, self._told = time.monotonic(), False
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *LDM, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches it through this process, and once
            )

    def poll(self) -> int | None:
        """Its exit code, negative if a signal ended it, or None."""
        return self._process.poll()

    def end(self) -> None:
        """Tell it, once, to save and end."""
        if not self._told:
            self._told = True
            self._process.send_signal(signal.SIGTERM)

    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.began


def threads_of(config: SweepTrainCommand | SweepEvaluateCommand) -> int:
    """The threads of each rank, where all trials at a time share the cores."""
    return max(1, usable_cores() // (config.sweep.parallel * config.cluster.processes))


def outcome_of(
    code: int, pruned: bool, not_finite: bool, refused: bool, may_retry: bool
) -> Outcome | None:
    """What an attempt that ended came to.

    Args:
        code: Its exit code.
        pruned: Whether it was ended because it did badly.
        not_finite: Whether a figure was not finite.
        refused: Whether its settings can be composed on no machine.
        may_retry: Whether it may go on after a failure.

    Returns:
        The trial's outcome, or None if it shall go on.
    """
    if not_finite or code == Diverged.exit_code:  # the same samples would lead there again
        return Outcome.diverged
    if code == 0:
        return Outcome.complete
    if pruned:
        return Outcome.pruned
    if refused:  # settings that cannot go together stay so
        return Outcome.refused
    return None if may_retry else Outcome.failed


def failure_line(code: int, log: Path) -> str:
    """An exit code, and what the process said last if it said why."""
    if code == Preempted.exit_code:
        return "preempted"
    lines = log.read_text(errors="replace").splitlines()
    said = [line.removeprefix(SAID) for line in lines if line.startswith(SAID)]
    what = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{what}: {said[-1]}" if said and code > 0 else what
