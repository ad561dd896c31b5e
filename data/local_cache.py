"""Whole shards of remote datasets on the local disk, bounded in bytes, shared by processes.

Owns the files of one folder. What is in place there is whole and has the hash that its name stands
for; what is being fetched carries a lock that dies with its process.
"""

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from conf.errors import UserError
from data.ranges import read_pieces
from data.say import say
from data.storage import Prefix
from data.tar import CorruptShard

SETTING = "data.local_cache"
_SHARD, _PARTIAL, _LOCK = ".shard", ".partial", "lock"
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class LocalCache:
    """A bounded cache of whole shards. Safe to use from several threads and processes.

    Several caches, of several runs too, may share a folder; each keeps to its own bound whenever it
    adds a shard. What a reader has mapped when it is evicted takes room until it lets go.

    Args:
        folder: Where to keep them; on a local disk, since network file systems neither lock nor
            map files reliably.
        max_bytes: How much to keep.

    Raises:
        UserError: The folder cannot be written.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._said: set[str] = set()
        self._broken = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                _remove_leftovers(folder)
        except OSError as error:
            wrong = f"cannot be written ({error.strerror})"
            raise UserError(
                f"{SETTING}={folder}", wrong, "choose a folder on a local disk"
            ) from error

    def open(self, prefix: Prefix, name: str, size: int, sha256: str) -> mmap.mmap | None:
        """A shard, mapped; fetched first if it is not there.

        Args:
            prefix: Where it comes from.
            name: Its name there.
            size: Its bytes.
            sha256: What they hash to.

        Returns:
            None if the cache cannot hold it: it is too large, the disk is full, or the folder can
            no longer be written.

        Raises:
            CorruptShard: What the storage gives is not the shard, twice.
            FileNotFoundError: The storage has no such file.
        """
        path = self._path(prefix, name, sha256)
        if (mapped := _map(path, size)) is not None:
            return mapped
        if self._broken:
            return None
        if size > self.max_bytes:
            self._say(f"{prefix.url}/{name} is larger than max_bytes={self.max_bytes}")
            return None
        try:
            return self._fetch(path, prefix, name, size, sha256)
        except OSError as error:
            if error.errno not in _UNWRITABLE or isinstance(error, FileNotFoundError):
                raise
            self._broken = True
            self._say(f"cannot be written ({error.strerror})")
            return None

    def drop(self, prefix: Prefix, name: str, sha256: str) -> None:
        """Forget a shard whose bytes turned out to be wrong, so that it is fetched again."""
        self._path(prefix, name, sha256).unlink(missing_ok=True)

    def _path(self, prefix: Prefix, name: str, sha256: str) -> Path:
        key = hashlib.sha256(f"{prefix.url.rstrip('/')}/{name}\n{sha256}".encode()).hexdigest()
        return self.folder / f"{key}{_SHARD}"

    def _fetch(
        self, path: Path, prefix: Prefix, name: str, size: int, sha256: str
    ) -> mmap.mmap | None:
        partial = path.with_suffix(_PARTIAL)
        with _held(partial) as file:
            if (mapped := _map(path, size)) is not None:  # another fetched it while we waited
                return mapped
            with self._locked():
                roomy = _make_room(self.folder, self.max_bytes - size, partial)
                if roomy:
                    os.posix_fallocate(file, 0, max(size, 1))
            if not roomy:
                self._say("has no room beside what is being fetched")
                return None
            for last in (False, True):
                wrong = _download(file, prefix, name, size, sha256)
                if not wrong:
                    break
                if last:
                    raise CorruptShard(f"{prefix.url}/{name}: {wrong}")
            partial.rename(path)
            return mmap.mmap(file, 0, access=mmap.ACCESS_READ)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder: counting, evicting and reserving are one step."""
        file = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _say(self, why: str) -> None:
        if why not in self._said:
            self._said.add(why)
            say(f"{SETTING}={self.folder}: {why}; streams on without the local cache")


def _map(path: Path, size: int) -> mmap.mmap | None:
    """A finished shard, marked as just used; None if there is none."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        if os.fstat(file).st_size != size:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(file)
        return mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(file)


@contextlib.contextmanager
def _held(partial: Path) -> Iterator[int]:
    """The file to fetch into, held by nobody else; gone afterwards unless it was moved."""
    while True:
        file = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, partial):  # its holder finished, or gave up
                continue
            try:
                yield file
            finally:
                if _is_at(file, partial):
                    partial.unlink()
            return
        finally:
            os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _make_room(folder: Path, room: int, ours: Path) -> bool:
    """Evict the least recently used until no more than `room` bytes are left; whether they are."""
    shards, total = [], 0
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            stat = entry.stat()
            if entry.name != ours.name:
                total += stat.st_size
            if entry.name.endswith(_SHARD):
                shards.append((stat.st_mtime_ns, entry.path, stat.st_size))
    for _, path, size in sorted(shards):
        if total <= room:
            break
        Path(path).unlink(missing_ok=True)
        total -= size
    return total <= room


def _download(file: int, prefix: Prefix, name: str, size: int, sha256: str) -> str:
    """Fetch a file; what is wrong with it, or an empty string."""
    digest, place = hashlib.sha256(), 0
    for piece in read_pieces(prefix, name, size):
        digest.update(piece)
        place += os.pwrite(file, piece, place)
    if place != size:
        return f"has {place} bytes, not the {size} of its manifest"
    if digest.hexdigest() != sha256:
        return f"has the SHA-256 {digest.hexdigest()}, not the {sha256} of its manifest"
    return ""


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes that died were fetching: nobody holds it."""
    for partial in folder.glob(f"*{_PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):
            file = os.open(partial, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(file, partial):
                    partial.unlink()
            except BlockingIOError:
                pass
            finally:
                os.close(file)
