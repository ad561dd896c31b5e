"""Child processes that never outlive a test run. Knows nothing of what they do."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

# Below the range the kernel hands out by itself (32768 and up on Linux), so that no outgoing
# connection can take a port between the moment it is found free and the moment it is bound.
_PORTS = range(20000, 32768)

# The tests seed `random`; seeded ports would make parallel test runs choose the same ones.
_CHANCE = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """Different TCP ports that nobody listens on."""
    with ExitStack() as held:
        return [_hold_free_port(held) for _ in range(count)]


def _hold_free_port(held: ExitStack) -> int:
    while True:
        port = _CHANCE.choice(_PORTS)
        probe = held.enter_context(socket.socket())
        with suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def installed_script(name: str) -> str:
    """The command `name` of the environment that runs the tests, activated or not."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def start_process(
    command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Starts `command` in a session of its own, its output in `log`.

    On Linux it also dies with the calling thread, however that ends. `setpriv` asks the kernel
    for that; a `preexec_fn` could deadlock, for s3fs runs threads in this process.
    """
    tie = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    with log.open("wb") as output:
        return subprocess.Popen(
            [*tie, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def kill_process(process: subprocess.Popen[bytes]) -> None:
    """Kills the process with all that it started, and waits for its end."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def log_tail(log: Path, lines: int = 30) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
