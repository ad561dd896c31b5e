"""Files on this machine: written whole or not at all, and counted."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


def bytes_in(folder: Path) -> int:
    """What a folder takes on the disk, with everything in it."""
    found = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # removed meanwhile
            found += file.lstat().st_size
    return found


@contextlib.contextmanager
def whole_file(target: Path, content: bytes | memoryview) -> Iterator[Path]:
    """A finished, flushed file beside `target`, gone afterwards unless it was moved there."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        reason = "Not a directory"
        raise NotADirectoryError(errno.ENOTDIR, reason, str(target.parent)) from None
    # Ranks on several nodes may have one process id and write one file, where they share a disk.
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex}.partial"
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def extend_file(target: Path, size: int, content: bytes) -> bool:
    """Append to a file that has so many bytes, and flush it; False, and no change, of any other.

    A kill may leave a part of the content.
    """
    try:
        with target.open("r+b") as file:
            if file.seek(0, os.SEEK_END) != size:
                return False
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        return False
    return True
