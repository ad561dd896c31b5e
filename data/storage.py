"""Storage behind fsspec URLs: whole reads, range reads, writes that are whole or absent.

Owns the allowlist of schemes and the wording of storage errors; knows nothing of datasets.
"""

import contextlib
import errno
import os
import posixpath
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from conf.errors import RunError, UserError
from conf.secrets import has_credentials
from data.local_files import bytes_in, nothing, whole_file
from data.ranged import ranged_file
from data.retry import Patience, ShortBody, at_first, has_expired, is_answer, persist, reason_of
from data.s3 import Replaced, create, error_code, renewal, s3_options, send, without_own_loop

T = TypeVar("T")

SCHEMES = ("file", "s3", "gs", "hf", "memory", "http", "https")
PIECE = 8 * 2**20  # bytes; larger files are read in pieces of this size
PIECES_AT_ONCE = 12  # at 93 MB/s a connection a gigabyte a second
_answered: set[Any] = set()


@dataclass(frozen=True, slots=True)
class Prefix:
    """A folder in some storage, and the setting that named it, for messages.

    Args:
        setting: The setting that holds the URL (`out`, `data.url`).
        url: The URL as the user gave it.
        fs: The file system.
        root: The folder's path within the file system.
        patience: How long a remote storage that fails is waited for.
        on_piece: Called for each piece of a local file that was written: it gets on. What is sent
            to a store has time limits of its own.
    """

    setting: str
    url: str
    fs: Any = field(repr=False, compare=False)
    root: str
    patience: Patience = field(default_factory=Patience, repr=False, compare=False)
    on_piece: Callable[[], None] = field(default=nothing, repr=False, compare=False)

    @property
    def local(self) -> Path | None:
        """The folder on the local disk, or None."""
        return Path(self.root) if isinstance(self.fs, LocalFileSystem) else None

    @property
    def absolute(self) -> str:
        """The URL, or for a local folder its full path: what others can be told to read."""
        return self.root if self.local else self.url

    def __truediv__(self, name: str) -> "Prefix":
        return replace(self, url=f"{self.url.rstrip('/')}/{name}", root=self.path(name))

    def path(self, name: str) -> str:
        """The path of `name` within the file system; names cannot climb out of the prefix."""
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{name!r} leaves the prefix {self.url}")
        return posixpath.join(self.root, name)

    def read(self, name: str, most: int | None = None) -> bytes:
        """The whole file, as long as the storage says that it is.

        Raises:
            FileNotFoundError: There is none.
            UserError: It has more than `most` bytes.
        """

        def attempt() -> bytes:
            info = {} if self.local else self._info(name)
            size = self.require_plain(name) if self.local else cast(int | None, info["size"])
            if most is not None and size is not None and size > most:
                raise OSError(errno.EFBIG, f"{name} has {size:,} bytes; the most is {most:,}")
            if self._s3 and size and size > PIECE:
                return self._read_pieces(name, size, info.get("ETag"))
            # Without the limit s3fs would ask for the size once more.
            single = {"max_concurrency": 1} if self._s3 else {}
            content = cast(bytes, self.fs.cat_file(self.path(name), **single))
            # It is longer only if it was replaced in between.
            if not self.local and size is not None and len(content) < size:
                raise ShortBody(f"gave {len(content)} of {size} bytes of {name}")
            return content

        return self._persist("read", attempt)

    def _read_pieces(self, name: str, size: int, etag: str | None) -> bytes:
        """A large file, each piece tried again by itself.

        s3fs does the like, but fills with zeros what a piece lacks.
        """
        starts = range(0, size, PIECE)
        try:
            with ThreadPoolExecutor(PIECES_AT_ONCE) as pool:
                content = b"".join(
                    pool.map(lambda start: self.read_buffer(name, start, PIECE, etag), starts)
                )
        except Replaced:
            raise ShortBody(f"gave {name} in two versions") from None
        if len(content) != size:
            raise ShortBody(f"gave {len(content)} of {size} bytes of {name}")
        return content

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; fewer only where the file ends."""
        return bytes(self.read_buffer(name, start, length))

    def read_buffer(
        self, name: str, start: int, length: int, etag: str | None = None
    ) -> bytes | memoryview:
        """The same without a copy.

        Raises:
            Replaced: `etag` is given, and the object has another by now.
        """
        if length == 0:  # s3fs would read the whole file
            return b""

        def attempt() -> bytes | memoryview:
            content = self._read_fast(name, start, length, etag) if self._s3 else None
            return self._read_slow(name, start, length) if content is None else content

        return self._persist("read", attempt)

    def _read_fast(self, name: str, start: int, length: int, etag: str | None) -> memoryview | None:
        from data.s3_ranges import read_range  # a client that other schemes need not load

        where = f"{self.setting}={self.url}"
        return read_range(self.fs, self.path(name), start, length, etag, where)

    def _read_slow(self, name: str, start: int, length: int) -> bytes:
        if self.local:
            self.require_plain(name)
        try:
            content = self.fs.cat_file(self.path(name), start=start, end=start + length)
        except OSError as error:
            if error_code(error) != "InvalidRange":  # S3's word for a start behind the end
                raise
            content = b""
        if len(content) > length:
            raise OSError(errno.EIO, f"gives {len(content)} bytes where {length} were asked for")
        if len(content) < length and not self.local:
            size = self._info(name)["size"]
            there = length if size is None else min(length, max(0, size - start))
            if size is not None and len(content) != there:
                raise ShortBody(f"gave {len(content)} of {there} bytes of {name} at {start}")
        return cast(bytes, content)

    def require_plain(self, name: str) -> int:
        """The size of a local file; a pipe or a device could be read for ever.

        Raises:
            OSError: It is none, or not there.
        """
        found = os.stat(self.path(name))  # noqa: PTH116 - half the time of Path's
        if not stat.S_ISREG(found.st_mode):
            kind = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.ENXIO
            raise OSError(kind, f"{name} is no plain file")
        return found.st_size

    def _info(self, name: str) -> dict[str, Any]:
        """What a storage tells of a file; its size is None where a web server does not tell."""
        info = cast(dict[str, Any], self.fs.info(self.path(name)))
        if info["type"] == "directory":
            raise FileNotFoundError(self.path(name))
        return info

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._persist("read", lambda: bool(self.fs.exists(self.path(name))))

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders in `folder`, sorted; none if there is no such folder."""
        path = self.path(folder).rstrip("/")

        def attempt() -> list[str]:
            try:
                return list(self.fs.ls(path, detail=False, refresh=True))
            except (FileNotFoundError, NotADirectoryError):
                return []

        entries = self._persist("read", attempt)
        inside = {entry.rstrip("/") for entry in entries} - {path}  # S3 may list a folder in itself
        return sorted(map(posixpath.basename, inside))

    def files(self) -> dict[str, str]:
        """Every file in the prefix and below, with what tells one version of it from another."""
        root = self.root.rstrip("/")
        found = self._persist("read", lambda: self.fs.find(root, detail=True))
        return {path[len(root) + 1 :]: _version(info) for path, info in found.items()}

    def version(self, name: str) -> str:
        """What tells one version of a file from another, as `files` has it.

        Raises:
            FileNotFoundError: There is no such file.
        """
        return self._persist("read", lambda: _version(self.fs.info(self.path(name))))

    def open(self, name: str) -> BinaryIO:
        """A file to read from, at any place; read it within `errors`.

        Raises:
            FileNotFoundError: There is none.
        """
        if self.local:
            self.require_plain(name)
        size = None if self.local else self._persist("read", lambda: self._info(name)["size"])
        if size is not None:
            return ranged_file(lambda start, length: self.read_buffer(name, start, length), size)
        return self._persist("read", lambda: cast(BinaryIO, self.fs.open(self.path(name), "rb")))

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file whole, in the place of any that is there."""
        path = self.path(name)
        if not self.local:
            # Clients of other stores take nothing but bytes.
            put = send if self._s3 else lambda fs, path, content: fs.pipe_file(path, bytes(content))
            self._persist("written", lambda: put(self.fs, path, content))
            return
        with self.errors("written"), whole_file(Path(path), content, self.on_piece) as written:
            written.replace(path)

    def create(self, name: str, content: bytes) -> None:
        """Write a file whole, only if there is none of that name.

        Raises:
            FileExistsError: There is one; it is left as it was.
        """
        path = self.path(name)
        if self._s3:
            creator = uuid.uuid4().hex
            self._persist("written", lambda: create(self.fs, path, content, creator))
            return
        if not self.local:  # gcsfs tries again by itself
            self._persist("written", lambda: self.fs.pipe_file(path, content, mode="create"))
            return
        with self.errors("written"), whole_file(Path(path), content) as written:
            os.link(written, path)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with everything in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._persist("removed", lambda: self.fs.rm(self.path(name), recursive=True))

    @property
    def _store(self) -> tuple[Any, str]:
        """What answers or does not: one web file system is of many hosts."""
        return self.fs, urlsplit(self.url).netloc

    @property
    def _s3(self) -> bool:
        return "s3" in self.fs.protocol

    def _persist(self, action: str, attempt: Callable[[], T]) -> T:
        """Run an action on the storage; on a remote one, through its passing faults."""
        with self.errors(action):
            if self.local:
                return attempt()
            # The clients of other stores renew their tokens by themselves.
            renew = renewal(self.fs) if self._s3 else lambda: None
            where = f"{self.setting}={self.url}"
            patience = self.patience if self._store in _answered else at_first(self.patience)
            try:
                return persist(lambda: self._noting_answers(attempt), renew, where, patience)
            except RunError as error:
                if self._store in _answered:
                    raise
                # A wrong address and a store that is away look alike, and the latter passes.
                raise RunError(
                    f"{where}: does not answer ({reason_of(error.__cause__ or error)}); check the "
                    "address, the endpoint and that it runs, then run again"
                ) from error

    def _noting_answers(self, attempt: Callable[[], T]) -> T:
        """Run an attempt, and remember a store that answers it, if only with a fault."""
        try:
            result = attempt()
        except Exception as error:
            if isinstance(error, FileNotFoundError) or is_answer(error):
                _answered.add(self._store)
            raise
        _answered.add(self._store)
        return result

    def require_writable(self, num_bytes: int) -> None:
        """Refuse, before any work is done, a prefix that cannot be written or has no room.

        Args:
            num_bytes: That it will hold in the end, with what an earlier process left there.

        Raises:
            UserError: A probe file cannot be written, or the disk has not enough room.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        self.write(probe, b"")
        self.remove(probe)
        if self.local:
            free = shutil.disk_usage(self.local).free
            if free < num_bytes and free < (needed := num_bytes - bytes_in(self.local)):
                raise UserError(
                    f"{self.setting}={self.url}",
                    f"{free / 1e6:,.0f} MB are free and about {needed / 1e6:,.0f} MB are needed",
                    "make room or choose another place",
                )

    @contextlib.contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Turn what only people can mend (rights, room, credentials, host) into one line."""
        try:
            yield
        except (FileNotFoundError, FileExistsError) as error:
            if isinstance(error, FileNotFoundError) and action == "written":
                raise self._refusal(action, error) from error
            raise
        except (OSError, ImportError) as error:
            raise self._refusal(action, error) from error
        except Exception as error:
            if type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp"):
                raise self._refusal(action, error) from error
            raise

    def _refusal(self, action: str, error: Exception) -> UserError | RunError:
        where, wrong = f"{self.setting}={self.url}", f"cannot be {action} ({reason_of(error)})"
        # What another start may find mended, with the same settings.
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return RunError(f"{where}: {wrong}; make room or choose another place, then run again")
        if has_expired(error):
            return RunError(f"{where}: {wrong}; renew your credentials, then run again")
        return UserError(where, wrong, "check the URL, its permissions and your credentials")


def open_prefix(url: str, setting: str) -> Prefix:
    """Open a folder by URL.

    Args:
        url: A path or an fsspec URL of an allowed scheme.
        setting: The setting that holds it, for messages.

    Raises:
        UserError: The scheme is not allowed, or its file system cannot be made.
    """
    prefix = re.match(r"([A-Za-z][\w+.-]*):", url)  # `pipe:` and `data:` have no slashes
    scheme = prefix[1] if prefix else "file"
    if scheme not in SCHEMES or "::" in url or not url or "\n" in url:
        raise UserError(
            f"{setting}={url!r}",
            "is not a URL that can be opened",
            f"use a path or one of {', '.join(SCHEMES)}",
        )
    if has_credentials(url):
        raise UserError(  # the URL is not repeated here
            f"{setting}={scheme}://...",
            "holds credentials, which would be kept with the run",
            "give them in the environment (AWS_ACCESS_KEY_ID and so on)",
        )
    options: dict[str, Any] = (
        {"use_listings_cache": False} if scheme in ("s3", "gs", "hf", "http", "https") else {}
    )
    if scheme == "s3":
        options |= s3_options()
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise UserError(
            f"{setting}={url}", str(error), f"install the package for {scheme}://"
        ) from error
    if scheme == "s3":
        without_own_loop(fs)
    return Prefix(setting=setting, url=url, fs=fs, root=root)


# What a storage says of a file that changes with its content: S3 and web servers, gs, hf, disk.
TAGS = ("ETag", "etag", "blob_id", "mtime", "Last-Modified")


def _version(info: dict[str, Any]) -> str:
    if info.get("islink"):  # the time is the link's, and what counts is where it leads
        with contextlib.suppress(OSError):
            info = {**info, "mtime": Path(info["name"]).stat().st_mtime}
    return f"{info['size']} {next((info[tag] for tag in TAGS if info.get(tag)), '')}"
