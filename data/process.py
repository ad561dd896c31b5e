"""Processes that must not outlive the one that started them, and work that is spread over some."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from conf.errors import RunError

T = TypeVar("T")
R = TypeVar("R")

LINUX_PR_SET_PDEATHSIG = 1
_IMPORTED = time.monotonic()


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; does nothing but on Linux.

    Args:
        parent: Process id of the parent, which may be dead already.

    Raises:
        OSError: The kernel refused.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(LINUX_PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "prctl failed")
    if os.getppid() != parent:  # it died before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


def process_mark(process: int) -> str:
    """What tells a process from all others, of this machine and of others; empty if it has ended.

    The machine's boot, the space of process numbers, and when the process began. Only Linux says
    all that: empty elsewhere.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        status = Path(f"/proc/{process}/stat").read_text()
        space = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return ""
    state, began = _state_and_start(status)
    if state in "ZX":  # nobody has asked yet how it ended
        return ""
    return f"{boot} {space} {process} {began}"


def process_age() -> float:
    """Seconds since this process began; since Python began in it where Linux does not say."""
    try:
        status = Path("/proc/self/stat").read_text()
    except OSError:
        return time.monotonic() - _IMPORTED
    _, began = _state_and_start(status)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")


def _state_and_start(status: str) -> tuple[str, int]:
    """What /proc/PID/stat says: a letter, and when it began, in ticks since the machine's boot."""
    fields = status.rpartition(")")[2].split()  # the name before it may hold blanks
    return fields[0], int(fields[19])  # fields 3 and 22 of all


def usable_cores() -> int:
    """How many cores this process may use, which a scheduler may have bound to a few of many."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_tasks(work: Callable[[T], R], tasks: Iterable[T], processes: int) -> Iterator[R]:
    """Work on tasks in processes of their own, and give results in whatever order they come.

    Tasks are taken as they are needed: only a few more than there are processes wait.

    Args:
        work: Can be pickled, as can its tasks and results.
        tasks: What to work on.
        processes: How many; one is this process itself.

    Raises:
        RunError: One was killed.
    """
    # Not needed by what only looks at processes, such as every start of `ldm`.
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    if processes <= 1:
        yield from map(work, tasks)
        return
    left = iter(tasks)
    spawn = get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, die_with, (os.getpid(),)) as pool:
        running: set[Future[R]] = set()
        try:
            while True:
                missing = 2 * processes - len(running)
                running |= {pool.submit(work, task) for task in islice(left, missing)}
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise RunError(
                "a process that worked on a shard was killed, most likely for want of memory; "
                "run again, with fewer processes=... if so"
            ) from error
        finally:  # an error need not wait for what has not begun
            pool.shutdown(cancel_futures=True)
