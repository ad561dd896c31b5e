import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest

from conf.errors import UserError
from data import local_cache, ranges
from data.local_cache import LocalCache
from data.storage import open_prefix
from data.tar import CorruptShard

SIZE = 5000


@pytest.fixture
def prefix():
    name = uuid.uuid4().hex
    yield open_prefix(f"memory://{name}", "data.url")
    fsspec.filesystem("memory").rm(name, recursive=True)


@pytest.fixture
def cache(tmp_path):
    return LocalCache(tmp_path / "cache", 4 * SIZE)


def put(prefix, number, size=SIZE):
    """Writes a shard; what `open` and `drop` want to know of it, and its content."""
    content = random.Random(number).randbytes(size)
    prefix.write(f"{number:05d}.tar", content)
    return f"{number:05d}.tar", size, hashlib.sha256(content).hexdigest(), content


def get(cache, prefix, shard):
    name, size, sha256, content = shard
    mapped = cache.open(prefix, name, size, sha256)
    assert mapped is None or mapped[:] == content
    return mapped


def names(cache):
    return sorted(path.name for path in cache.folder.iterdir() if path.name != "lock")


def total(cache):
    sizes = {}  # by file: one that is renamed meanwhile is met under both names
    for path in cache.folder.iterdir():
        with suppress(FileNotFoundError):
            stat = path.stat()
            sizes[stat.st_ino] = stat.st_size
    return sum(sizes.values())


def count_downloads(monkeypatch):
    calls = []
    download = local_cache._download

    def counting(file, prefix, name, size, sha256):
        calls.append(name)
        return download(file, prefix, name, size, sha256)

    monkeypatch.setattr(local_cache, "_download", counting)
    return calls


# --- what is served


def test_a_shard_is_fetched_once(cache, prefix, monkeypatch):
    calls = count_downloads(monkeypatch)
    monkeypatch.setattr(ranges, "PIECE", 700)
    shard = put(prefix, 1)
    for _ in range(3):
        assert isinstance(get(cache, prefix, shard), mmap.mmap)
        cache = LocalCache(cache.folder, cache.max_bytes)
    assert calls == ["00001.tar"]


def test_a_shard_is_known_by_its_whole_url_and_its_hash(cache, prefix):
    here, there = put(prefix / "a", 1), put(prefix / "b", 1, 3000)
    assert here[0] == there[0]
    for _ in range(2):
        assert get(cache, prefix / "a", here) and get(cache, prefix / "b", there)
    content = bytes(SIZE)
    (prefix / "a").write(here[0], content)  # the dataset is made anew, in the same place
    assert get(cache, prefix / "a", here)  # somebody still reads the old one
    renewed = (here[0], SIZE, hashlib.sha256(content).hexdigest(), content)
    assert get(cache, prefix / "a", renewed)
    before = names(cache)
    assert all(len(name) == 64 + len(".shard") for name in before)
    twin = put(prefix / "c", 1, 3000)  # the same bytes elsewhere
    assert get(cache, prefix / "c", twin)
    cache.drop(prefix / "c", twin[0], twin[2])
    assert names(cache) == before


def test_what_is_not_the_shard_is_never_served(cache, prefix, monkeypatch):
    calls = count_downloads(monkeypatch)
    name, size, sha256, content = put(prefix, 1)
    for wrong, says in (
        (content[:-1], "has 4,999 bytes where the manifest says 5,000"),
        (content[:-1] + b"?", f"where the manifest says {sha256}"),
        (content + b"!", None),
    ):
        prefix.write(name, wrong)
        calls.clear()
        if says is None:  # what stands behind the shard is not read
            assert get(cache, prefix, (name, size, sha256, content))
            continue
        with pytest.raises(CorruptShard, match=says) as caught:
            cache.open(prefix, name, size, sha256)
        assert f"{prefix.url}/{name}" in str(caught.value)
        assert len(calls) == 2
        assert names(cache) == []
    with pytest.raises(CorruptShard, match="is missing"):
        cache.open(prefix, "no.tar", 5, sha256)


def test_a_fault_that_passes_is_tried_once_more(cache, prefix, monkeypatch):
    shard = put(prefix, 1)
    read = local_cache.read_pieces
    faults = [b"?"]

    def faulty(prefix, name, size):
        for piece in read(prefix, name, size):
            yield memoryview(faults.pop() + bytes(piece)[1:]) if faults else piece

    monkeypatch.setattr(local_cache, "read_pieces", faulty)
    assert get(cache, prefix, shard)


def test_a_file_cut_by_a_crash_is_fetched_again(cache, prefix):
    shard = put(prefix, 1)
    assert get(cache, prefix, shard)
    (path,) = cache.folder.glob("*.shard")
    for length in (0, SIZE - 1, SIZE + 1):
        os.truncate(path, length)
        assert get(cache, prefix, shard)
        assert path.stat().st_size == SIZE


def test_a_shard_that_rotted_is_fetched_again_once_it_is_dropped(cache, prefix):
    name, size, sha256, content = shard = put(prefix, 1)
    held = get(cache, prefix, shard)
    (path,) = cache.folder.glob("*.shard")
    path.write_bytes(b"?" + content[1:])
    assert cache.open(prefix, name, size, sha256)[:1] == b"?"
    cache.drop(prefix, name, sha256)
    cache.drop(prefix, name, sha256)
    assert get(cache, prefix, shard)
    assert held[1:] == content[1:]


# --- the bound


def test_the_least_recently_used_goes_first(cache, prefix, monkeypatch):
    shards = [put(prefix, number) for number in range(6)]
    calls = count_downloads(monkeypatch)
    kept, order = [], (0, 1, 2, 3, 0, 4, 5)
    for number in order:
        kept.append(get(cache, prefix, shards[number]))
        time.sleep(0.02)  # file systems tell times apart by some milliseconds
    calls.clear()
    for number in (0, 3, 4, 5):
        assert get(cache, prefix, shards[number])
    assert calls == []
    assert total(cache) == cache.max_bytes
    for number, mapped in zip(order, kept, strict=True):  # evicted, some, and yet readable
        assert mapped[:] == shards[number][3]


def test_runs_with_other_bounds_share_a_folder(cache, prefix):
    shards = [put(prefix, number) for number in range(5)]
    narrow = LocalCache(cache.folder, 2 * SIZE)
    for shard in shards[:4]:
        assert get(cache, prefix, shard)
    assert get(narrow, prefix, shards[0])  # it is there, and nothing has to go
    assert total(cache) == 4 * SIZE
    assert get(narrow, prefix, shards[4])
    assert total(cache) == 2 * SIZE
    assert get(cache, prefix, shards[2])
    assert total(cache) == 3 * SIZE


def test_files_of_others_are_left_alone(cache, prefix):
    for name in ("photo.shard", "work.partial", "notes.txt"):
        (cache.folder / name).write_bytes(bytes(9 * SIZE))
    for number in range(6):
        assert get(cache, prefix, put(prefix, number))
    LocalCache(cache.folder, cache.max_bytes)
    assert {"photo.shard", "work.partial", "notes.txt"} < set(names(cache))


def test_a_shard_larger_than_the_bound_is_not_kept(cache, prefix, capsys):
    large = put(prefix, 1, 4 * SIZE + 1)
    assert get(cache, prefix, large) is get(cache, prefix, large) is None
    (said,) = capsys.readouterr().out.splitlines()
    assert said == (
        f"data.local_cache={cache.folder}: {prefix.url}/00001.tar is larger than 20,000 bytes; "
        "streams on without the local cache"
    )
    assert get(cache, prefix, put(prefix, 2, 4 * SIZE))


def test_what_is_being_fetched_counts(cache, prefix, capsys, monkeypatch):
    read = local_cache.read_pieces

    def nested(outer, name, size):
        monkeypatch.setattr(local_cache, "read_pieces", read)
        assert get(cache, prefix, put(prefix, 2, 2 * SIZE)) is None
        assert get(cache, prefix, put(prefix, 3, SIZE))
        yield from read(outer, name, size)

    shard = put(prefix, 1, 3 * SIZE)
    monkeypatch.setattr(local_cache, "read_pieces", nested)
    assert get(cache, prefix, shard)
    assert "no room beside the shards that are being fetched" in capsys.readouterr().out
    assert total(cache) == 4 * SIZE


def test_a_short_write_is_gone_on_with(cache, prefix, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, at: write(file, content[:777], at))
    assert get(cache, prefix, put(prefix, 1))


# --- a folder that fails


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("reserves", [True, False])
def test_a_full_disk_is_said_once_and_lived_with(small_disk, prefix, capsys, monkeypatch, reserves):
    if not reserves:  # as on a file system that cannot
        monkeypatch.setattr(os, "posix_fallocate", lambda *_: None)
        monkeypatch.setattr(ranges, "PIECE", 3000)
    cache = LocalCache(small_disk / "cache", 10**9)
    first = put(prefix, 0, 40_000)
    assert get(cache, prefix, first)
    for number in (1, 2):
        assert get(cache, prefix, put(prefix, number, 40_000)) is None
    (said,) = capsys.readouterr().out.splitlines()
    assert "No space left on device" in said
    assert said.endswith("streams on without the local cache")
    assert len(names(cache)) == 1  # nothing half written is left
    assert get(cache, prefix, first)
    next(iter(cache.folder.glob("*.shard"))).unlink()
    assert get(cache, prefix, put(prefix, 1, 40_000)) is None  # it rests
    monkeypatch.setattr(cache, "_rests_until", 0.0)
    assert get(cache, prefix, put(prefix, 1, 40_000))


def test_a_folder_that_becomes_read_only_is_lived_with(small_disk, prefix, capsys):
    cache = LocalCache(small_disk / "cache", 10**9)
    name, _, sha256, _ = shard = put(prefix, 0)
    assert get(cache, prefix, shard)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert get(cache, prefix, put(prefix, 1)) is None
    assert get(cache, prefix, shard)
    cache.drop(prefix, name, sha256)
    assert get(cache, prefix, shard) is None  # it cannot be removed, nor trusted
    (said,) = capsys.readouterr().out.splitlines()
    assert "Read-only file system" in said


def test_a_folder_that_vanishes_is_lived_with(cache, prefix, capsys):
    shutil.rmtree(cache.folder)
    assert get(cache, prefix, put(prefix, 1)) is None
    assert "streams on without" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(UserError, match="cannot be written") as caught:
            LocalCache(folder, 1)
        assert str(caught.value).startswith(f"data.local_cache={folder}: ")


# --- several threads and processes


def test_threads_that_want_one_shard_fetch_it_once(cache, prefix, monkeypatch):
    calls = count_downloads(monkeypatch)
    shards = [put(prefix, number) for number in range(3)]
    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(lambda i: get(cache, prefix, shards[i % 3]), range(48)))
    assert sorted(calls) == ["00000.tar", "00001.tar", "00002.tar"]


def process(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=Path(local_cache.__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )


DYING = """
import sys, time
from pathlib import Path
from data import local_cache
from data.storage import open_prefix
def stuck(prefix, name, size):
    yield memoryview(b"half")
    print("half", flush=True)
    time.sleep(600)
local_cache.read_pieces = stuck
cache = local_cache.LocalCache(Path(sys.argv[1]), 10**9)
cache.open(open_prefix(sys.argv[2], "data.url"), "00001.tar", int(sys.argv[3]), sys.argv[4])
"""


def test_what_a_dead_process_left_is_never_served_and_removed(cache, prefix):
    name, size, sha256, _ = shard = put(prefix, 1)
    for again in (False, True):
        child = process(DYING, cache.folder, prefix.url, size, sha256)
        assert child.stdout.readline() == "half\n"
        LocalCache(cache.folder, 1)  # removes nothing that is held
        assert [name[-8:] for name in names(cache)] == [".partial"]
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if again:
            LocalCache(cache.folder, 1)
            assert names(cache) == []
        else:
            assert get(cache, prefix, shard)
            cache.drop(prefix, name, sha256)


READING = """
import json, random, sys
from pathlib import Path
from data.local_cache import LocalCache
from data.storage import open_prefix
folder, url, max_bytes, seed, shards = sys.argv[1:]
shards = json.loads(shards)
cache, prefix = LocalCache(Path(folder), int(max_bytes)), open_prefix(url, "data.url")
chance, held, missed = random.Random(int(seed)), [], 0
for turn in range(1500):
    name, size, sha256 = chance.choice(shards)
    content = random.Random(int(name[:5])).randbytes(size)
    if turn % 50 == 0:
        cache.drop(prefix, name, sha256)
    mapped = cache.open(prefix, name, size, sha256)
    if mapped is None:
        missed += 1
        continue
    assert mapped[:] == content, name
    held.append((mapped, content))
    if len(held) > 20:
        mapped, content = held.pop(0)
        assert mapped[:] == content, name
print(missed)
"""


def test_processes_that_read_and_evict_see_no_wrong_byte(tmp_path):
    source = open_prefix("file://" + str(tmp_path / "source"), "data.url")
    shards = [put(source, number, 1000 + 77 * number)[:3] for number in range(12)]
    size = sum(size for _, size, _ in shards)
    cache = LocalCache(tmp_path / "cache", size // 3)
    children = [
        process(READING, cache.folder, source.url, size // part, part, json.dumps(shards))
        for part in (3, 4)
    ]
    deadline = time.monotonic() + 120
    largest = 0
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        with local_cache._locked(cache.folder / "lock"):  # nobody adds anything meanwhile
            largest = max(largest, total(cache))
        time.sleep(0.01)
    missed = [int(child.communicate()[0]) for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sum(missed) < 300  # both fetched at once, and there was no room for both
    assert largest <= size // 3
    LocalCache(cache.folder, 1)
    assert not list(cache.folder.glob("*.partial"))
