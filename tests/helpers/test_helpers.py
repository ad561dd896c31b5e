"""The helpers do what the tests that use them take for granted."""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from tests.helpers.processes import free_ports, installed_script, kill_process, start_process
from tests.helpers.ranks import run_ranks
from tests.helpers.s3 import start_seaweedfs

# --- processes


def test_free_ports_are_different_and_free():
    ports = free_ports(20)
    assert len(set(ports)) == 20


def test_kill_process_ends_what_the_process_started(tmp_path):
    log = tmp_path / "log"
    process = start_process(["sh", "-c", "sleep 600 & echo $!; wait"], log, {})
    assert _soon(lambda: log.read_text().endswith("\n"))
    kill_process(process)
    assert _soon(lambda: not _is_alive(int(log.read_text())))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_process_dies_with_the_one_that_started_it(tmp_path):
    log = tmp_path / "log"
    code = (
        "import pathlib, time; from tests.helpers.processes import start_process;"
        f"print(start_process(['sleep', '600'], pathlib.Path({str(log)!r}), {{}}).pid, flush=True);"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        assert _soon(lambda: _command_of(child).startswith("sleep"))
        parent.send_signal(signal.SIGKILL)
    assert _soon(lambda: not _is_alive(child))


# --- s3


def test_s3_reads_back_what_was_written(s3_prefix):
    filesystem, path = fsspec.core.url_to_fs(s3_prefix)
    data = os.urandom(20 << 20)  # large enough for a multipart upload in several chunks
    with filesystem.open(f"{path}/object", "wb") as file:
        file.write(data)
    assert filesystem.cat_file(f"{path}/object") == data
    assert filesystem.cat_file(f"{path}/object", start=1000, end=1010) == data[1000:1010]


def test_s3_create_only_put_refuses_the_second(s3_prefix):
    filesystem, path = fsspec.core.url_to_fs(s3_prefix)
    filesystem.pipe_file(f"{path}/object", b"first", mode="create")
    with pytest.raises(OSError, match="pre-condition") as caught:
        filesystem.pipe_file(f"{path}/object", b"second", mode="create")
    # s3fs raises FileExistsError only where the answer names the condition, as Amazon's does.
    assert caught.value.__cause__.response["Error"]["Code"] == "PreconditionFailed"
    assert filesystem.cat_file(f"{path}/object") == b"first"


def test_s3_create_only_put_has_one_winner_in_a_race(s3_prefix):
    filesystem, path = fsspec.core.url_to_fs(s3_prefix)

    def create(number):
        with contextlib.suppress(OSError):
            filesystem.pipe_file(f"{path}/object", str(number).encode(), mode="create")
            return number

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(create, range(16)) if number is not None]
    assert [filesystem.cat_file(f"{path}/object")] == [str(winner).encode() for winner in winners]


def test_s3_plain_put_overwrites(s3_prefix):
    filesystem, path = fsspec.core.url_to_fs(s3_prefix)
    filesystem.pipe_file(f"{path}/object", b"first")
    filesystem.pipe_file(f"{path}/object", b"second")
    assert filesystem.cat_file(f"{path}/object") == b"second"


def test_s3_is_reached_by_child_processes(s3_prefix):
    code = "import sys, fsspec; fsspec.open(sys.argv[1], 'wb').open().close()"
    subprocess.run([sys.executable, "-c", code, f"{s3_prefix}/object"], check=True)
    filesystem, path = fsspec.core.url_to_fs(s3_prefix)
    assert filesystem.exists(f"{path}/object")


def test_s3_refuses_a_wrong_secret(s3_prefix):
    filesystem, path = fsspec.core.url_to_fs(
        s3_prefix, key=os.environ["AWS_ACCESS_KEY_ID"], secret="wrong"
    )
    with pytest.raises(PermissionError):
        filesystem.pipe_file(f"{path}/object", b"")


def test_s3_prefixes_differ(s3, s3_prefix, request):
    assert s3_prefix.startswith(f"{s3}/")
    assert s3_prefix != s3


def test_seaweedfs_that_cannot_start_says_why(tmp_path, monkeypatch):
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        ports = [*free_ports(7), occupied.getsockname()[1]]
        monkeypatch.setattr("tests.helpers.s3.free_ports", lambda count: ports)
        with pytest.raises(RuntimeError, match=r"exit code 255(.|\n)*address already in use"):
            start_seaweedfs(tmp_path)


def test_seaweedfs_leaves_nothing_running_and_no_files_outside_its_folder(tmp_path):
    server = start_seaweedfs(tmp_path)
    sockets = [f"seaweedfs-*-{port}.sock" for port in server.ports]
    assert any(list(Path("/tmp").glob(pattern)) for pattern in sockets)
    server.stop()
    server.stop()
    assert server.process.returncode == -signal.SIGKILL
    assert not any(list(Path("/tmp").glob(pattern)) for pattern in sockets)


def test_installed_scripts_need_no_activated_environment(monkeypatch):
    monkeypatch.setenv("PATH", "")
    shown = subprocess.run([installed_script("weed"), "version"], check=True, capture_output=True)
    assert b"version" in shown.stdout


# --- ranks


def _all_reduce(value):
    import torch.distributed  # here, for the ranks of the other tests start faster without it

    torch.distributed.init_process_group("gloo")
    total = torch.tensor([value * (int(os.environ["RANK"]) + 1)])
    torch.distributed.all_reduce(total)
    rank = torch.distributed.get_rank()
    torch.distributed.destroy_process_group()
    return rank, total.item()


def _environment():
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")
    return [os.environ[name] for name in names]


def _raise_on(rank):
    if os.environ["RANK"] == rank:
        raise ValueError("the cause")
    time.sleep(600)


def _raise_everywhere(first):
    if os.environ["RANK"] == first:
        atexit.register(time.sleep, 600)  # the others fail while the first one tidies up
        raise ValueError("the cause")
    time.sleep(1)
    raise ConnectionError("a consequence")


def _hang_on(rank):
    if os.environ["RANK"] == rank:
        time.sleep(600)


def _die_on(rank):
    if os.environ["RANK"] == rank:
        os.abort()
    time.sleep(600)


def _exit():
    os._exit(0)


def test_ranks_form_a_process_group():
    results = run_ranks(_all_reduce, 2, 10)
    assert results == [(0, 30), (1, 30)]


def test_ranks_have_their_environment():
    assert run_ranks(_environment, 2) == [
        ["0", "0", "2", "2", "1"],
        ["1", "1", "2", "2", "1"],
    ]


def test_a_raising_rank_is_reported_and_the_others_are_killed():
    start = time.monotonic()
    with pytest.raises(AssertionError, match=r"^rank 1 raised:\n(.|\n)*ValueError: the cause"):
        run_ranks(_raise_on, 2, "1")
    assert time.monotonic() - start < 60


def test_the_rank_that_failed_first_is_reported_first():
    with pytest.raises(AssertionError, match=r"^rank 1 raised:\n(.|\n)*rank 0 raised:\n"):
        run_ranks(_raise_everywhere, 2, "1")


def test_a_hanging_rank_is_named_with_the_place_where_it_hangs():
    with pytest.raises(AssertionError, match="hung until the time limit: rank 1\n") as caught:
        run_ranks(_hang_on, 2, "1", timeout=10)
    assert "in _hang_on" in str(caught.value)


def test_a_dying_rank_is_named():
    with pytest.raises(AssertionError, match=f"^rank 0 died, exit code -{int(signal.SIGABRT)}"):
        run_ranks(_die_on, 2, "0")


def test_a_rank_that_ends_without_returning_is_no_success():
    with pytest.raises(AssertionError, match="rank 0 ended without returning"):
        run_ranks(_exit, 1)


def _soon(condition, limit=10.0):
    deadline = time.monotonic() + limit
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def _is_alive(pid):
    return _state_of(pid) not in ("", "Z")


def _state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_text()
