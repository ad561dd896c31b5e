"""Two hosts on one machine: network namespaces on a bridge, each with an address of its own.

Owns the namespaces, the bridge and the processes in them. A link that is cut is a cable pulled out:
packets are lost, and nobody is told.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.processes import kill_process, start_process

_NETWORK = "10.213.77"
WHY_NOT = (
    ""
    if sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip")
    else "network namespaces need Linux, iproute2 and the rights of root"
)


@dataclass(frozen=True, slots=True)
class Host:
    """One of the hosts.

    Args:
        name: Of its namespace.
        address: In the network of both, and of this machine.
        link: The bridge's end of its cable.
    """

    name: str
    address: str
    link: str

    def start(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> "subprocess.Popen[bytes]":
        """Starts a command on this host, its output in `log`."""
        return start_process(["ip", "netns", "exec", self.name, *command], log, environment)

    def crash(self) -> None:
        """Kills all that runs on this host, at once."""
        found = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True
        )
        for number in found.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)

    def cut(self) -> None:
        """Pulls the cable out."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Puts it back."""
        _ip("link", "set", self.link, "up")

    @contextmanager
    def running(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> "Iterator[subprocess.Popen[bytes]]":
        """A command that does not outlive the block."""
        process = self.start(command, log, environment)
        try:
            yield process
        finally:
            kill_process(process)
            self.crash()


@contextmanager
def two_hosts() -> Iterator[tuple[str, Host, Host]]:
    """This machine's address in their network, and the hosts."""
    mark = f"{os.getpid() % 100_000:05d}"
    bridge, here = f"lfb{mark}", f"{_NETWORK}.1"
    with ExitStack() as undo:
        _ip("link", "add", bridge, "type", "bridge")
        undo.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{here}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        hosts = []
        for number in (0, 1):
            host = Host(f"lf{mark}-{number}", f"{_NETWORK}.{number + 2}", f"lfv{mark}{number}")
            _ip("netns", "add", host.name)
            undo.callback(_ip, "netns", "del", host.name)
            peer = ("peer", "name", "eth0", "netns", host.name)
            _ip("link", "add", host.link, "type", "veth", *peer)
            _ip("link", "set", host.link, "master", bridge, "up")
            inside = ("-n", host.name)
            _ip(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip(*inside, "link", "set", device, "up")
            hosts.append(host)
        yield here, hosts[0], hosts[1]


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
