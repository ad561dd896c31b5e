"""Files on this machine: written whole or not at all, and counted."""

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

FLUSHED = 64 * 2**20  # bytes that are brought to the disk at once


def nothing() -> None:
    """For whoever is not interested."""


def bytes_in(folder: Path) -> int:
    """What a folder takes on the disk, with everything in it."""
    found = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # removed meanwhile
            found += file.lstat().st_size
    return found


@contextlib.contextmanager
def whole_file(
    target: Path, content: bytes | memoryview, on_piece: Callable[[], None] = nothing
) -> Iterator[Path]:
    """A finished, flushed file beside `target`, gone afterwards unless it was moved there.

    Args:
        target: Where it will be.
        content: Its bytes.
        on_piece: Called for every 64 MiB that are on the disk, and for the rest.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        reason = "Not a directory"
        raise NotADirectoryError(errno.ENOTDIR, reason, str(target.parent)) from None
    # Ranks on several nodes may have one process id and write one file, where they share a disk.
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex}.partial"
    try:
        with partial.open("wb") as file:
            whole = memoryview(content)
            for start in range(0, max(1, len(whole)), FLUSHED):
                file.write(whole[start : start + FLUSHED])
                file.flush()
                os.fsync(file.fileno())
                on_piece()
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
