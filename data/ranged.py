"""Remote files as open files, for libraries that want one: every read is a ranged read.

fsspec's own open files know nothing of `data.retry`: one fault in a long search would end it.
"""

import io
from collections.abc import Callable
from typing import BinaryIO, cast

BUFFER = 8 * 2**20  # bytes that are read at once; headers of neighbouring members come together


class _Ranged(io.RawIOBase):
    def __init__(self, read: Callable[[int, int], bytes | memoryview], size: int) -> None:
        self._read, self._size, self._place = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = max(0, min(len(buffer), self._size - self._place))
        content = self._read(self._place, length) if length else b""
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


def ranged_file(read: Callable[[int, int], bytes | memoryview], size: int) -> BinaryIO:
    """A file to read from, at any place.

    Args:
        read: Gives the bytes from a start on, of a length; fewer only where the file ends.
        size: Of the file in bytes.
    """
    return cast(BinaryIO, io.BufferedReader(_Ranged(read, size), BUFFER))
