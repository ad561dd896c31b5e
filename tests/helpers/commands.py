"""`ldm` as a user starts it: in processes of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.helpers.processes import kill_process, log_tail, start_process

LDM = (sys.executable, "-m", "launch.cli")
# One thread a process: on few cores more of them only wait for each other.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "NO_COLOR": "1", "COLUMNS": "200"}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    output: str


def ldm(log: Path, *arguments: str, timeout: float = 600) -> Ended:
    """Runs `ldm` to its end."""
    with running_ldm(log, *arguments) as process:
        return wait_for_end(process, log, timeout)


@contextmanager
def running_ldm(log: Path, *arguments: str) -> "Iterator[subprocess.Popen[bytes]]":
    """`ldm` as the leader of a process group, which does not outlive the block."""
    environment = {**ENVIRONMENT, "TMPDIR": str(log.parent)}
    process = start_process([*LDM, *arguments], log, environment)
    try:
        yield process
    finally:
        kill_process(process)


def wait_for_end(process: "subprocess.Popen[bytes]", log: Path, timeout: float = 600) -> Ended:
    """Waits for a command."""
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"hung until the time limit:\n{log_tail(log)}") from None
    return Ended(code, log.read_text(errors="replace"))


def wait_until(
    there: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path, timeout: float = 600
) -> None:
    """Waits until something is so while a command runs.

    Raises:
        AssertionError: It ended before, or it takes too long.
    """
    limit = time.monotonic() + timeout
    while not there():
        assert process.poll() is None, f"ended too early:\n{log_tail(log)}"
        assert time.monotonic() < limit, f"hung until the time limit:\n{log_tail(log)}"
        time.sleep(0.005)


def kill_hard(process: "subprocess.Popen[bytes]") -> list[str]:
    """Kills this one process; returns what it had started and what is not gone soon after."""
    started = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, 9)
    process.wait()
    _, alive = psutil.wait_procs(started, timeout=10)
    survivors = []
    for survivor in alive:
        try:
            survivors.append(" ".join(survivor.cmdline()))
            survivor.kill()
        except psutil.NoSuchProcess:
            pass
    return survivors
