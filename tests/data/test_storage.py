import errno
import io
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from s3fs import S3FileSystem

from conf.errors import RunError, UserError
from data import local_files, ranged, s3, storage
from data.storage import SCHEMES, open_prefix
from tests.helpers.datasets import files_of


@pytest.fixture
def prefix(url):
    return open_prefix(url, "out")


@pytest.fixture
def local(tmp_path):
    return open_prefix(str(tmp_path / "prefix"), "out")


# --- the same on every storage


def test_what_was_written_is_read(prefix):
    prefix.write("a/b/c.bin", b"first")
    assert prefix.read("a/b/c.bin") == b"first"
    prefix.write("a/b/c.bin", b"")
    assert prefix.read("a/b/c.bin") == b""


def test_create_takes_a_free_name_only(prefix):
    prefix.create("a/b", b"first")
    with pytest.raises(FileExistsError):
        prefix.create("a/b", b"second")
    assert prefix.read("a/b") == b"first"
    prefix.remove("a/b")
    prefix.create("a/b", b"third")
    assert prefix.read("a/b") == b"third"


@pytest.mark.parametrize("url", ["local", "s3"], indirect=True)
def test_of_many_creators_one_wins(prefix):
    def create(number):
        try:
            prefix.create("a", str(number).encode())
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(4) as pool:
        winners = [number for number in pool.map(create, range(4)) if number is not None]
    assert [prefix.read("a")] == [str(winner).encode() for winner in winners]


def test_a_range_ends_where_the_file_ends(prefix):
    prefix.write("a", b"0123456789")
    ranges = [(0, 0), (0, 4), (2, 3), (8, 9), (0, 10), (0, 99), (5, 0), (10, 1), (10, 0), (20, 3)]
    for start, length in ranges:
        assert prefix.read_range("a", start, length) == b"0123456789"[start : start + length]
    prefix.write("empty", b"")
    assert prefix.read_range("empty", 0, 5) == b""


def test_what_is_not_there_is_not_found(prefix):
    prefix.write("a", b"1")
    with pytest.raises(FileNotFoundError):
        prefix.read("b")
    with pytest.raises(FileNotFoundError):
        prefix.read_range("b", 0, 1)
    assert [prefix.exists(name) for name in ("a", "b", "a/b")] == [True, False, False]


def test_names_are_those_of_one_folder(prefix):
    assert prefix.names() == prefix.names("a") == []
    prefix.write("b", b"1")
    assert prefix.names("b") == []
    for name in ("a/2", "a/10", "a/c/d", "ab"):
        prefix.write(name, b"1")
    assert prefix.names() == ["a", "ab", "b"]
    assert prefix.names("a") == prefix.names("a/") == ["10", "2", "c"]
    assert (prefix / "a").names("c") == ["d"]


def test_names_follow_other_writers(url, prefix):
    assert prefix.names() == []
    open_prefix(url, "out").write("a", b"1")
    assert prefix.names() == ["a"]
    open_prefix(url, "out").remove("a")
    assert prefix.names() == []


def test_remove_takes_a_file_or_a_folder_and_no_neighbour(prefix):
    for name in ("a/b", "a/c/d", "ab", "e", "ef"):
        prefix.write(name, b"1")
    prefix.remove("a")
    prefix.remove("e")
    prefix.remove("never there")
    names = ("a/b", "a/c/d", "ab", "e", "ef")
    assert [name for name in names if prefix.exists(name)] == ["ab", "ef"]


def test_a_prefix_within_a_prefix_is_a_folder(url, prefix):
    inner = prefix / "runs" / "1"
    inner.write("a", b"1")
    assert prefix.read("runs/1/a") == b"1"
    assert inner.url == f"{url}/runs/1"
    assert inner.setting == "out"


def test_a_prefix_that_can_be_written_is_left_as_it_was(prefix):
    prefix.write("a", b"1")
    prefix.require_writable(0)
    assert prefix.names() == ["a"]


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", ".."])
def test_a_name_cannot_leave_its_prefix(local, name):
    for use in (local.read, local.exists, local.remove, lambda name: local.write(name, b"")):
        with pytest.raises(ValueError, match="leaves the prefix"):
            use(name)


# --- whole or not at all


def _break_at_the_end(monkeypatch, error):
    def fsync(descriptor):
        raise error

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("action", ["write", "create"])
def test_a_writer_that_dies_leaves_nothing(local, tmp_path, monkeypatch, action):
    _break_at_the_end(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        getattr(local, action)("a", b"half")
    assert files_of(tmp_path) == {}


def test_a_writer_that_dies_leaves_what_was_there(local, tmp_path, monkeypatch):
    local.write("a", b"old")
    _break_at_the_end(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        local.write("a", b"new")
    assert files_of(tmp_path) == {"prefix/a": b"old"}


def test_a_reader_sees_the_old_file_or_the_new_one(local, monkeypatch):
    local.write("a", b"old")
    seen = []
    replace = Path.replace

    def watched(self, target):
        seen.append(local.read("a"))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    local.write("a", b"new")
    assert (seen, local.read("a")) == ([b"old"], b"new")


# --- what only the user can mend


def _refused(use, *args):
    with pytest.raises(UserError) as caught:
        use(*args)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_full_disk_is_said_to_be_full(local, monkeypatch):
    _break_at_the_end(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(RunError, match=r"No space left on device.*make room") as caught:
        local.write("a", b"1")
    assert str(caught.value).startswith(f"out={local.url}: ")


def test_too_little_room_is_found_before_the_work(local):
    error = _refused(local.require_writable, shutil.disk_usage("/").total * 1000)
    assert error.setting == f"out={local.url}"
    assert "MB are needed" in error.wrong
    assert "make room" in error.remedy
    assert local.names() == []


def test_what_an_earlier_process_wrote_needs_no_room_again(local, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    local.write("shards/a.tar", bytes(9_500_000))
    local.require_writable(10_000_000)
    error = _refused(local.require_writable, 12_000_000)
    assert error.wrong.startswith("1 MB are free and about 2 MB are needed")


@pytest.mark.parametrize("below", ["", "/below", "/far/below"])
def test_a_file_is_no_folder(tmp_path, below):
    (tmp_path / "file").write_text("kept")
    prefix = open_prefix(f"{tmp_path}/file{below}", "out")
    for use in (prefix.write, prefix.create):
        assert _refused(use, "a", b"1").wrong == "cannot be written (Not a directory)"
    assert _refused(prefix.require_writable, 0).setting == f"out={tmp_path}/file{below}"
    assert (tmp_path / "file").read_text() == "kept"


def test_what_s3_refuses_is_named(s3_prefix, monkeypatch):
    S3FileSystem.clear_instance_cache()  # they hold clients with the right secret
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    prefix = open_prefix(s3_prefix, "out")
    for use in (prefix.read, prefix.exists, prefix.names, prefix.remove):
        assert _refused(use, "a").setting == f"out={s3_prefix}"
    for use in (prefix.write, prefix.create):
        assert "cannot be written" in _refused(use, "a", b"1").wrong
    S3FileSystem.clear_instance_cache()


def test_what_no_bucket_can_be_called_is_named(s3):
    prefix = open_prefix("s3://No Bucket/a", "out")
    assert _refused(prefix.write, "a", b"1").setting == "out=s3://No Bucket/a"


@pytest.mark.parametrize(
    "url",
    [
        "pipe:cat /etc/passwd",
        "pipe://cat",
        "data:text/plain,1",
        "ftp://host/a",
        "ssh://host/a",
        "github://a:b@/c",
        "simplecache::s3://a/b",
        "zip://a::file:///b",
        "a::b",
        "/a::b",
        "python://x",
        "/a\nb",
        "",
    ],
)
def test_only_the_listed_schemes_are_opened(url):
    error = _refused(open_prefix, url, "data.url")
    assert error.setting == f"data.url={url!r}"
    assert "s3" in error.remedy


def test_a_path_may_hold_a_colon(tmp_path):
    prefix = open_prefix(f"{tmp_path}/a:b", "out")
    prefix.write("c", b"1")
    assert (tmp_path / "a:b" / "c").read_bytes() == b"1"


def test_paths_and_file_urls_are_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_prefix("a", "out").local == tmp_path / "a"
    assert open_prefix(f"file://{tmp_path}/a", "out").local == tmp_path / "a"
    assert open_prefix("memory://a", "out").local is None


def test_a_scheme_without_its_package_says_what_to_install(monkeypatch):
    def missing(url, **options):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    assert "gs" in SCHEMES
    error = _refused(open_prefix, "gs://a/b", "out")
    assert (error.setting, error.remedy) == ("out=gs://a/b", "install the package for gs://")


def test_a_file_is_opened_at_any_place_and_its_version_is_that_of_the_listing(url):
    prefix = open_prefix(url, "out")
    prefix.write("a/b", b"0123456789")
    with prefix.open("a/b") as file:
        file.seek(7)
        assert file.read() == b"789"
    assert prefix.version("a/b") == prefix.files()["a/b"]
    for read in (prefix.open, prefix.version):
        with pytest.raises(FileNotFoundError):
            read("a/none")


def test_reading_an_open_file_goes_on_from_where_it_was(url, monkeypatch):
    monkeypatch.setattr(ranged, "BUFFER", 4)
    prefix, content = open_prefix(url, "out"), bytes(range(100))
    prefix.write("a", content)
    chance, local = random.Random(0), io.BytesIO(content)
    with prefix.open("a") as file:
        assert file.seekable() and file.readable() and not file.writable()
        for _ in range(300):
            whence, length = chance.choice([0, 0, 1, 2]), chance.randrange(-1, 30)
            offset = {0: chance.randrange(120), 1: 3, 2: -chance.randrange(100)}[whence]
            if chance.random() < 0.5:
                assert file.seek(offset, whence) == local.seek(offset, whence) == file.tell()
            assert file.read(length) == local.read(length)


@pytest.mark.parametrize("tag", ["ETag", "etag", "blob_id", "mtime", "Last-Modified"])
def test_a_version_tells_files_of_one_size_apart(tag):
    """Each storage has its own name for what changes with the content."""
    one, other = ({"size": 3, "type": "file", tag: value} for value in "ab")
    assert storage._version(one) != storage._version(other)


def test_a_version_follows_a_link(tmp_path):
    (tmp_path / "file").write_text("one")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "file")
    prefix = open_prefix(str(tmp_path / "folder"), "out")
    found = set()
    for second in range(3):
        os.utime(tmp_path / "file", (second, second))
        assert prefix.files() == {"link": prefix.version("link")}
        found.add(prefix.version("link"))
    assert len(found) == 3


def test_writers_of_one_file_never_share_what_is_not_whole_yet(tmp_path):
    """Not on two nodes either, where processes and threads may have the same numbers."""
    whole_file, name = storage.whole_file, tmp_path / "a"
    with whole_file(name, b"1") as one, whole_file(name, b"2") as other:
        assert (one.read_bytes(), other.read_bytes()) == (b"1", b"2")


@pytest.mark.parametrize(("size", "pieces"), [(0, 1), (3, 1), (4, 1), (5, 2), (12, 3)])
def test_each_piece_that_is_on_the_disk_is_told(local, monkeypatch, size, pieces):
    monkeypatch.setattr(local_files, "FLUSHED", 4)
    told = []
    telling = replace(local, on_piece=lambda: told.append(1)) / "below"
    content = os.urandom(size)
    telling.write("a", memoryview(content))
    assert telling.read("a") == content
    assert len(told) == pieces


def test_what_is_large_is_sent_in_parts_and_never_copied_whole(s3_prefix, monkeypatch):
    monkeypatch.setattr(s3, "PART", 5 * 2**20)  # the least that S3 takes
    taken, take = [], s3._Parts.__getitem__

    def noting(self, part):
        taken.append(take(self, part))
        return taken[-1]

    monkeypatch.setattr(s3._Parts, "__getitem__", noting)
    content = os.urandom(12 * 2**20)
    prefix = open_prefix(s3_prefix, "out")
    prefix.write("large", memoryview(content))
    assert [len(part) for part in taken] == [5 * 2**20, 5 * 2**20, 2 * 2**20]
    prefix.write("small", memoryview(content)[:100])
    assert len(taken) == 3
    assert prefix.read("large") == content
    assert prefix.read("small") == content[:100]
