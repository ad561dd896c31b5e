"""Storage behind fsspec URLs: whole reads, range reads, writes that are whole or absent.

Owns the allowlist of schemes and the wording of storage errors; knows nothing of datasets.
"""

import contextlib
import errno
import os
import posixpath
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from conf.errors import UserError

SCHEMES = ("file", "s3", "gs", "hf", "memory", "http", "https")


@dataclass(frozen=True, slots=True)
class Prefix:
    """A folder in some storage, and the setting that named it, for messages.

    Args:
        setting: The setting that holds the URL (`out`, `data.url`).
        url: The URL as the user gave it.
        fs: The file system.
        root: The folder's path within the file system.
    """

    setting: str
    url: str
    fs: Any = field(repr=False, compare=False)
    root: str

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

    def read(self, name: str) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: There is none.
        """
        with self.errors("read"):
            return cast(bytes, self.fs.cat_file(self.path(name)))

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; fewer only where the file ends."""
        if length == 0:  # s3fs would read the whole file
            return b""
        with self.errors("read"):
            try:
                content = self.fs.cat_file(self.path(name), start=start, end=start + length)
            except OSError as error:
                if _s3_code(error) != "InvalidRange":  # S3's word for a start behind the end
                    raise
                content = b""
            return cast(bytes, content)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        with self.errors("read"):
            return bool(self.fs.exists(self.path(name)))

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders in `folder`, sorted; none if there is no such folder."""
        path = self.path(folder).rstrip("/")
        with self.errors("read"):
            try:
                entries = self.fs.ls(path, detail=False, refresh=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        inside = {entry.rstrip("/") for entry in entries} - {path}  # S3 may list a folder in itself
        return sorted(map(posixpath.basename, inside))

    def files(self) -> dict[str, str]:
        """Every file in the prefix and below, with what tells one version of it from another."""
        root = self.root.rstrip("/")
        with self.errors("read"):
            found = self.fs.find(root, detail=True)
        return {path[len(root) + 1 :]: _version(info) for path, info in found.items()}

    def version(self, name: str) -> str:
        """What tells one version of a file from another, as `files` has it.

        Raises:
            FileNotFoundError: There is no such file.
        """
        with self.errors("read"):
            return _version(self.fs.info(self.path(name)))

    def open(self, name: str) -> BinaryIO:
        """A file to read from, at any place; read it within `errors`.

        Raises:
            FileNotFoundError: There is none.
        """
        with self.errors("read"):
            return cast(BinaryIO, self.fs.open(self.path(name), "rb"))

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole, in the place of any that is there."""
        with self.errors("written"):
            if self.local:
                with _whole_file(Path(self.path(name)), content) as written:
                    written.replace(self.path(name))
            else:
                self.fs.pipe_file(self.path(name), content)

    def create(self, name: str, content: bytes) -> None:
        """Write a file whole, only if there is none of that name.

        Raises:
            FileExistsError: There is one; it is left as it was.
        """
        with self.errors("written"):
            if self.local:
                with _whole_file(Path(self.path(name)), content) as written:
                    os.link(written, self.path(name))
                return
            try:
                self.fs.pipe_file(self.path(name), content, mode="create")
            except OSError as error:
                # s3fs raises FileExistsError only where the server names the condition.
                if _s3_code(error) == "PreconditionFailed":
                    raise FileExistsError(self.path(name)) from error
                raise

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with everything in it, if it is there."""
        with self.errors("written"), contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path(name), recursive=True)

    def require_writable(self, num_bytes: int) -> None:
        """Refuse, before any work is done, a prefix that cannot be written or has no room.

        Raises:
            UserError: A probe file cannot be written, or the disk has less than `num_bytes` free.
        """
        probe = f".probe-{os.getpid()}"
        self.write(probe, b"")
        self.remove(probe)
        if self.local:
            free = shutil.disk_usage(self.local).free
            if free < num_bytes:
                raise UserError(
                    f"{self.setting}={self.url}",
                    f"{free / 1e6:,.0f} MB are free and about {num_bytes / 1e6:,.0f} MB are needed",
                    "make room or choose another place",
                )

    @contextlib.contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Turn what only the user can mend (rights, room, credentials, host) into a UserError."""
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

    def _refusal(self, action: str, error: Exception) -> UserError:
        remedy = "check the URL, its permissions and your credentials"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "make room or choose another place"
        reason = (
            getattr(error, "strerror", None) or str(error) or type(error).__name__
        ).splitlines()[0]
        return UserError(f"{self.setting}={self.url}", f"cannot be {action} ({reason})", remedy)


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
    if "@" in url.partition("://")[2].partition("/")[0] or "X-Amz-" in url:
        raise UserError(  # the URL is not repeated here
            f"{setting}={scheme}://...",
            "holds credentials, which would be kept with the run",
            "give them in the environment (AWS_ACCESS_KEY_ID and so on)",
        )
    options = {"use_listings_cache": False} if scheme in ("s3", "gs", "hf", "http", "https") else {}
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise UserError(
            f"{setting}={url}", str(error), f"install the package for {scheme}://"
        ) from error
    return Prefix(setting=setting, url=url, fs=fs, root=root)


def _version(info: dict[str, Any]) -> str:
    return f"{info['size']} {info.get('ETag') or info.get('mtime', '')}"


def _s3_code(error: OSError) -> str:
    """The code of an S3 server's answer that s3fs made this error of, or an empty string."""
    response = getattr(error.__cause__, "response", None)
    return str(response["Error"].get("Code", "")) if isinstance(response, dict) else ""


@contextlib.contextmanager
def _whole_file(target: Path, content: bytes) -> Iterator[Path]:
    """A finished, flushed file beside `target`, gone afterwards unless it was moved there."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        reason = "Not a directory"
        raise NotADirectoryError(errno.ENOTDIR, reason, str(target.parent)) from None
    partial = target.parent / f".{target.name}.{os.getpid()}.{threading.get_ident()}.partial"
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)
