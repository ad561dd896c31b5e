"""Arrays as .npy members: written, and read by the batch into one block of memory."""

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from data.npy import parse_header, parse_npy
from data.tar import Column, CorruptShard

HEADER_BYTES = 128  # NumPy's, for arrays of up to four dimensions
NUMBERS = ("<f2", "<f4", "<u2", "<i4")  # floats, the bits of bfloat16, ids of tokens
# A copy of so many bytes takes less time than letting other threads run meanwhile.
HELD_BYTES = 2**15


def dump_array(array: NDArray[Any]) -> bytes:
    """The bytes of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def load_array(content: bytes) -> NDArray[Any]:
    """An array from the bytes of an .npy file; never unpickles."""
    return parse_npy(content).copy()


class _Header(NamedTuple):
    """What the header of an array says, and its CRC-32."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size: int  # bytes of the whole file
    crc32: int


def stack_arrays(column: Column) -> NDArray[Any]:
    """Arrays of one shape as one of (B, ...), in the number format in which they lie.

    Raises:
        CorruptShard: One is damaged, or of another shape or format than the first.
    """
    headers = _headers(column)
    first = headers[0]
    for nth, header in enumerate(headers):
        if header is not first:  # of equal headers there is one
            raise _odd_one(column, nth, header, first)
    batch = np.empty((len(headers), *first.shape), dtype=first.dtype)
    _fill(batch, column, headers)
    return batch


def pad_arrays(column: Column) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Arrays of (L_i, D) as one of (B, L, D), zero after each one's end, and a mask (B, L).

    Raises:
        CorruptShard: One is damaged, or of another width or format than the first.
    """
    headers = _headers(column)
    first = headers[0]
    dtype, width = first.dtype, first.shape[1:]
    for nth, header in enumerate(headers):
        if len(header.shape) != 2 or header.shape[1:] != width or header.dtype != dtype:
            raise _odd_one(column, nth, header, first)
    lengths = [header.shape[0] for header in headers]
    longest = max(lengths)
    batch = np.empty((len(headers), longest, *width), dtype=dtype)
    _fill(batch, column, headers)
    mask = np.arange(longest) < np.array(lengths)[:, None]
    if min(lengths) < longest:
        batch[~mask] = 0
    return batch, mask


def _headers(column: Column) -> list[_Header]:
    """The headers of arrays that are as long as these say."""
    headers: list[_Header] = []
    header, last = None, b""
    for window, start, length in zip(column.windows, column.starts, column.lengths, strict=True):
        content = window[start : start + HEADER_BYTES].tobytes()
        if content != last:
            header, last = _parse(content), content
        if header is None or header.size != length or start + length > len(window):
            member = column.member(len(headers))
            member.copy()  # says so if it is damaged
            raise CorruptShard(f"{member.where}: is no array as this version writes them")
        headers.append(header)
    return headers


@lru_cache(maxsize=4096)
def _parse(content: bytes) -> _Header | None:
    """A header; None if it is none that `dump_array` writes for a cache."""
    try:
        found = parse_header(content)
    except ValueError:
        return None
    plain = not found.fortran_order and found.dtype.str in NUMBERS
    # Of no numbers, another side may be as long as it likes.
    if found.start != HEADER_BYTES or not plain or 0 in found.shape:
        return None
    return _Header(found.dtype, found.shape, found.size, crc32(content))


def _fill(batch: NDArray[Any], column: Column, headers: Sequence[_Header]) -> None:
    """Copy the numbers of arrays to their places, and check the copies.

    What is used is what was checked, whoever writes to the shard meanwhile.
    """
    memory: Any = batch.reshape(-1).view(np.uint8)
    target, stride, place = memoryview(memory), memory.size // len(batch), 0
    windows, starts, lengths, crc32s, member = column
    for window, start, length, wanted, header in zip(
        windows, starts, lengths, crc32s, headers, strict=True
    ):
        numbers = window[start + HEADER_BYTES : start + length]
        copy = target[place : place + length - HEADER_BYTES]
        if length <= HELD_BYTES:
            copy[:] = numbers
        else:
            np.copyto(np.frombuffer(copy, np.uint8), np.frombuffer(numbers, np.uint8))
        if crc32(copy, header.crc32) != wanted:
            raise member(place // stride).damage()
        place += stride


def _odd_one(column: Column, nth: int, header: _Header, first: _Header) -> CorruptShard:
    """The error that names an array that does not go with the first, unless one is damaged."""
    for i in (0, nth):
        member = column.member(i)
        member.copy()  # says so if it is damaged
    return CorruptShard(
        f"{member.where}: is {header.dtype} {header.shape}, others are {first.dtype} {first.shape}"
    )
