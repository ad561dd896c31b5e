"""How much of a machine's memory this process may still take, as Linux tells it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
KIB = 1024


class Files(NamedTuple):
    """What a version of control groups calls its limit, its use, and files not read of late."""

    limit: str
    used: str
    inactive: str


VERSION_1 = Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = Files("memory.max", "memory.current", "inactive_file")


class Memory(NamedTuple):
    """Bytes.

    Attributes:
        free: That can still be taken, what the kernel keeps of files included.
        total: That there are.
    """

    free: int
    total: int

    @property
    def share(self) -> float:
        """Of the total that is free, in [0, 1]."""
        return self.free / self.total


def host_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory | None:
    """The tightest of the machine's memory and the limits of the groups that this process is in.

    Args:
        proc: Where the kernel shows itself.
        cgroups: Where it shows its control groups, of either version.

    Returns:
        None where there is no such thing.
    """
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        groups = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return None
    sizes = {
        name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)
    }
    machine = Memory(sizes["MemAvailable"] * KIB, sizes["MemTotal"] * KIB)
    found = [machine]
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += _limits(cgroups, path, VERSION_2)
        elif "memory" in controllers.split(","):
            found += _limits(cgroups / "memory", path, VERSION_1)
    # Version 1 writes no limit as a number that no machine has.
    return min(one for one in found if one.total <= machine.total)


def _limits(root: Path, path: str, files: Files) -> Iterator[Memory]:
    """Of a group and all above it."""
    group = root / path.lstrip("/")
    if not group.exists():  # a container sees its own group as the root
        group = root
    while group.is_relative_to(root):
        try:
            most = (group / files.limit).read_text().strip()
            used = int((group / files.used).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except OSError:
            most = "max"  # the root of version 2 has no such files
        if most != "max":
            # Files that nobody reads any longer go when room is needed.
            used -= int(stat[files.inactive])
            yield Memory(max(0, int(most) - used), int(most))
        group = group.parent
