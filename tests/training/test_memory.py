"""The memory that is left is that of the tightest group."""

from pathlib import Path

import pytest

from training.memory import Memory, host_memory

GIB = 2**30


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine of 64 GiB, 40 of which are free."""
    (tmp_path / "proc/self").mkdir(parents=True)
    lines = {"MemTotal": 64, "MemFree": 1, "MemAvailable": 40}
    text = "".join(f"{name}: {size * GIB // 1024} kB\n" for name, size in lines.items())
    (tmp_path / "proc/meminfo").write_text(f"{text}HugePages_Total: 0\n")
    return tmp_path / "proc"


def write_group(folder: Path, names: tuple[str, str, str], most: str, used: int, old: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{most}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {old}\n")


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def test_without_groups_it_is_the_machine_s(proc: Path, tmp_path: Path) -> None:
    (proc / "self/cgroup").write_text("0::/\n")
    assert host_memory(proc, tmp_path / "none") == Memory(40 * GIB, 64 * GIB)
    assert host_memory(tmp_path / "none") is None


def test_a_limit_above_the_own_group_counts(proc: Path, tmp_path: Path) -> None:
    (proc / "self/cgroup").write_text("0::/job/step\n")
    groups = tmp_path / "groups"
    write_group(groups / "job/step", V2, "max", 5 * GIB, 0)
    write_group(groups / "job", V2, str(8 * GIB), 5 * GIB, GIB)
    assert host_memory(proc, groups) == Memory(4 * GIB, 8 * GIB)


def test_a_container_sees_its_group_as_the_root(proc: Path, tmp_path: Path) -> None:
    (proc / "self/cgroup").write_text("0::/system.slice/box\n")
    write_group(tmp_path / "groups", V2, str(8 * GIB), 9 * GIB, 0)
    assert host_memory(proc, tmp_path / "groups") == Memory(0, 8 * GIB)


def test_version_1_has_its_own_names_and_a_number_for_no_limit(proc: Path, tmp_path: Path) -> None:
    (proc / "self/cgroup").write_text("5:cpu:/x\n4:memory:/job\n0::/\n")
    memory = tmp_path / "groups/memory"
    write_group(memory, V1, str(2**63 - 4096), GIB, 0)
    write_group(memory / "job", V1, str(2**63 - 4096), GIB, 0)
    assert host_memory(proc, tmp_path / "groups") == Memory(40 * GIB, 64 * GIB)
    write_group(memory / "job", V1, str(16 * GIB), 6 * GIB, 2 * GIB)
    assert host_memory(proc, tmp_path / "groups") == Memory(12 * GIB, 16 * GIB)


def test_this_machine_has_memory() -> None:
    memory = host_memory()
    assert memory is None or 0 < memory.free <= memory.total
