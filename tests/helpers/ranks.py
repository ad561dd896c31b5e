"""Runs a function on several ranks, each a fresh interpreter on this machine.

Owns the ranks' environment and their end; the function itself starts the process group.
"""

import faulthandler
import gc
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.processes import free_ports, kill_process, log_tail, start_process

_TIME_FOR_STACKS = 1.0  # seconds before the time limit at which a hanging rank prints its stacks


@dataclass(frozen=True, slots=True)
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    log: Path
    result: Path  # pickled; there if the function returned
    error: Path  # the traceback; there if it raised


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120
) -> list[Any]:
    """Calls `function(*args)` on every rank.

    Args:
        function: Lives at the top of a module, for the ranks import it by name.
        world_size: How many ranks.
        *args: Anything that pickles.
        timeout: Seconds for all ranks together, the start of their interpreters included.

    Returns:
        What each rank returned, in the order of the ranks.

    Raises:
        AssertionError: A rank raised (with its traceback), died or hung (with the end of its
            output). The other ranks are killed.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        (folder / "call").write_bytes(pickle.dumps((function, args)))
        port = free_ports(1)[0]
        deadline = time.monotonic() + timeout
        ranks: list[_Rank] = []
        try:
            for number in range(world_size):
                environment = _environment(number, world_size, port)
                ranks.append(_start_rank(folder, number, environment, timeout))
            _wait(ranks, deadline)
        finally:
            for rank in ranks:
                kill_process(rank.process)
        print(*map(_describe_log, ranks), sep="\n")  # shown if what the test asserts next fails
        return [_result(rank) for rank in ranks]


def _start_rank(folder: Path, number: int, environment: dict[str, str], timeout: float) -> _Rank:
    log, result, error = (folder / f"{number}.{kind}" for kind in ("log", "result", "error"))
    arguments = [folder / "call", result, error, timeout - _TIME_FOR_STACKS]
    command = [sys.executable, "-m", "tests.helpers.ranks", *map(str, arguments)]
    return _Rank(number, start_process(command, log, environment), log, result, error)


def _environment(number: int, world_size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
    }


def _wait(ranks: Sequence[_Rank], deadline: float) -> None:
    while running := [rank for rank in ranks if rank.process.poll() is None]:
        if any(rank.process.returncode for rank in ranks):
            break
        if time.monotonic() > deadline:
            raise AssertionError(_describe_hang(running))
        time.sleep(0.02)
    if failed := [rank for rank in ranks if rank.process.returncode or rank.error.exists()]:
        raise AssertionError(_describe_failures(failed))


def _describe_hang(running: Sequence[_Rank]) -> str:
    numbers = ", ".join(str(rank.number) for rank in running)
    return "\n".join([f"hung until the time limit: rank {numbers}", *map(_describe_log, running)])


def _describe_failures(failed: Sequence[_Rank]) -> str:
    """The cause first: other ranks often fail after it, on the connections that it dropped."""
    return "\n".join(_describe_failure(rank) for rank in sorted(failed, key=_time_of_failure))


def _time_of_failure(rank: _Rank) -> int:
    last_word = rank.error if rank.error.exists() else rank.log
    return last_word.stat().st_mtime_ns


def _describe_failure(rank: _Rank) -> str:
    if rank.error.exists():
        return f"rank {rank.number} raised:\n{rank.error.read_text()}"
    return f"rank {rank.number} died, exit code {rank.process.returncode}\n{_describe_log(rank)}"


def _describe_log(rank: _Rank) -> str:
    return f"--- output of rank {rank.number}\n{log_tail(rank.log)}"


def _result(rank: _Rank) -> Any:
    assert rank.result.exists(), f"rank {rank.number} ended without returning"
    return pickle.loads(rank.result.read_bytes())


def _run_this_rank(call: str, result: str, error: str, seconds_until_stacks: str) -> int:
    """The other side: what each rank's interpreter runs. Exit code 1 means that it raised."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(float(seconds_until_stacks), 0.1))
    try:
        function, args = pickle.loads(Path(call).read_bytes())
        gc.freeze()  # what is imported stays: each engine's end collects, which then costs little
        returned = pickle.dumps(function(*args))
    except BaseException:
        Path(error).write_text(traceback.format_exc())
        return 1
    Path(result).write_bytes(returned)
    return 0


if __name__ == "__main__":
    sys.exit(_run_this_rank(*sys.argv[1:]))
