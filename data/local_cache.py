"""Whole shards of remote datasets on the local disk, bounded in bytes, shared by processes.

Owns the files of one folder. What is in place there was whole and had its hash when it came; what
is still being fetched stands under another name, locked by the process that fetches it.
"""

import contextlib
import fcntl
import hashlib
import mmap
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from conf.errors import UserError
from data.ranges import read_pieces
from data.retry import reason_of
from data.say import say
from data.storage import Prefix
from data.tar import CorruptShard

SETTING = "data.local_cache"
RETRY_AFTER = 60.0  # seconds until a folder that could not be written is tried again
_SHARD, _PARTIAL, _LOCK = ".shard", ".partial", "lock"
_OURS = re.compile(rf"[0-9a-f]{{64}}({_SHARD}|{_PARTIAL})")


class LocalCache:
    """A bounded cache of whole shards. Safe to use from several threads and processes.

    Several caches, of several runs too, may share a folder; each keeps the folder within its own
    bound whenever it adds a shard. A shard that is evicted while it is mapped takes room on the
    disk until its last reader lets go.

    Args:
        folder: Where to keep the shards. It must be on a local disk: network file systems lock and
            map files unreliably, and some not at all.
        max_bytes: How much to keep.

    Raises:
        UserError: The folder cannot be written.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._said: set[str] = set()
        self._stuck: set[Path] = set()  # wrong, and could not be removed
        self._rests_until = -float("inf")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / _LOCK):
                _remove_leftovers(folder)
        except OSError as error:
            wrong = f"cannot be written ({reason_of(error)})"
            raise UserError(
                f"{SETTING}={folder}", wrong, "name a folder on a local disk"
            ) from error

    def open(self, prefix: Prefix, name: str, size: int, sha256: str) -> mmap.mmap | None:
        """A shard, mapped; fetched first if it is not there.

        Args:
            prefix: Where it comes from.
            name: Its name there.
            size: Its bytes.
            sha256: What they hash to, in hexadecimal.

        Returns:
            None if the cache cannot take it, which is said once: it is too large, the disk is full,
            or the folder can no longer be written.

        Raises:
            CorruptShard: The storage has no such file, or gives another one, twice.
        """
        path = self._path(prefix, name, sha256)
        if size == 0 or path in self._stuck:  # nothing cannot be mapped
            return None
        if size > self.max_bytes:
            self._decline(f"{prefix.url}/{name} is larger than {self.max_bytes:,} bytes")
            return None
        try:
            if (mapped := _map(path, size)) is not None:
                return mapped
            if time.monotonic() < self._rests_until:
                return None
            return self._fetch(path, prefix, name, size, sha256)
        except OSError as error:  # of the folder: the storage turns its own into others
            self._rests_until = time.monotonic() + RETRY_AFTER
            self._decline(f"cannot be written ({reason_of(error)})")
            return None

    def drop(self, prefix: Prefix, name: str, sha256: str) -> None:
        """Forget a shard whose bytes turned out to be wrong, so that it is fetched again."""
        path = self._path(prefix, name, sha256)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._stuck.add(path)
            self._decline(f"cannot be written ({reason_of(error)})")

    def _path(self, prefix: Prefix, name: str, sha256: str) -> Path:
        """Another place for each URL and each content."""
        url = f"{prefix.url.rstrip('/')}/{name}"
        return self.folder / (hashlib.sha256(f"{url}\n{sha256}".encode()).hexdigest() + _SHARD)

    def _fetch(
        self, path: Path, prefix: Prefix, name: str, size: int, sha256: str
    ) -> mmap.mmap | None:
        partial = path.with_suffix(_PARTIAL)
        with _held(partial) as file:
            if (mapped := _map(path, size)) is not None:  # fetched by another while we waited
                return mapped
            if not self._reserve(partial, file, size):
                self._decline("has no room beside the shards that are being fetched")
                return None
            wrong = _download(file, prefix, name, size, sha256)
            if wrong:  # by a fault that may have passed
                wrong = _download(file, prefix, name, size, sha256)
            if wrong:
                raise CorruptShard(f"{prefix.url}/{name}: {wrong}")
            # Not flushed to the disk: what a crash leaves of it fails its checksums and is dropped.
            partial.rename(path)
            return mmap.mmap(file, 0, access=mmap.ACCESS_READ)

    def _reserve(self, partial: Path, file: int, size: int) -> bool:
        """Take the room that a file will need, in the count and on the disk; whether there is."""
        with _locked(self.folder / _LOCK):
            if not _make_room(self.folder, self.max_bytes - size, partial.name):
                return False
            os.ftruncate(file, 0)  # somebody may have died over it
            os.posix_fallocate(file, 0, size)
            return True

    def _decline(self, why: str) -> None:
        if why not in self._said:
            self._said.add(why)
            say(f"{SETTING}={self.folder}: {why}; streams on without the local cache")


def _map(path: Path, size: int) -> mmap.mmap | None:
    """A shard that is in place, marked as just used; None if there is none of that size."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        if os.fstat(file).st_size != size:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # another user's, or a disk that turned read-only
            os.utime(file)
        return mmap.mmap(file, size, access=mmap.ACCESS_READ)
    finally:
        os.close(file)


def _download(file: int, prefix: Prefix, name: str, size: int, sha256: str) -> str:
    """Fetch a file; what is wrong with it, or an empty string."""
    digest, place = hashlib.sha256(), 0
    try:
        for piece in read_pieces(prefix, name, size):
            digest.update(piece)
            _write(file, piece, place)
            place += len(piece)
    except FileNotFoundError:  # a file that is open is not to be found again
        return "is missing"
    if place != size:
        return f"has {place:,} bytes where the manifest says {size:,}"
    if digest.hexdigest() != sha256:
        return f"has the SHA-256 {digest.hexdigest()} where the manifest says {sha256}"
    return ""


def _write(file: int, content: memoryview, place: int) -> None:
    while content:  # the last write to a full disk is a short one
        written = os.pwrite(file, content, place)
        content, place = content[written:], place + written


def _make_room(folder: Path, room: int, ours: str) -> bool:
    """Evict what was not used for longest until the others take `room` bytes; whether they do."""
    _remove_leftovers(folder)
    shards, total = [], 0
    for entry in os.scandir(folder):
        if _OURS.fullmatch(entry.name) and entry.name != ours:
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat()
                total += stat.st_size
                if entry.name.endswith(_SHARD):
                    shards.append((stat.st_mtime_ns, entry.name, stat.st_size))
    for _, name, size in sorted(shards):
        if total <= room:
            break
        (folder / name).unlink(missing_ok=True)
        total -= size
    return total <= room


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes that died were fetching: nobody holds it."""
    for entry in os.scandir(folder):
        if _OURS.fullmatch(entry.name) and entry.name.endswith(_PARTIAL):
            with (
                contextlib.suppress(FileNotFoundError, BlockingIOError),
                _locked(Path(entry.path), fcntl.LOCK_NB, os.O_RDWR) as file,
            ):
                if _is_at(file, Path(entry.path)):
                    Path(entry.path).unlink()


@contextlib.contextmanager
def _held(partial: Path) -> Iterator[int]:
    """The file to fetch into, nobody else's meanwhile; gone afterwards unless it was moved."""
    while True:
        with _locked(partial) as file:
            if _is_at(file, partial):
                try:
                    yield file
                finally:
                    if _is_at(file, partial):
                        partial.unlink()
                return
        # Whoever held it has moved or removed it.


@contextlib.contextmanager
def _locked(path: Path, extra: int = 0, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[int]:
    """A file that is open and locked; the kernel unlocks it if the process dies."""
    file = os.open(path, flags, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | extra)
        try:
            yield file
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # or a forked child would go on holding it
    finally:
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
