"""Arrays as .npy members: written, and read by the batch into one block of memory."""

import io
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from data.npy import parse_header, parse_npy
from data.tar import CorruptShard, Member

HEADER_BYTES = 128  # NumPy's, for arrays of up to four dimensions
FLOATS = ("<f2", "<f4")


def dump_array(array: NDArray[np.floating[Any]]) -> bytes:
    """The bytes of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def load_array(content: bytes) -> NDArray[np.floating[Any]]:
    """An array from the bytes of an .npy file; never unpickles."""
    return parse_npy(content).copy()


def stack_arrays(members: Sequence[Member]) -> NDArray[np.floating[Any]]:
    """Arrays of one shape as one of (B, ...), in the number format in which they lie.

    Raises:
        CorruptShard: One is damaged, or of another shape or format than the first.
    """
    headers = [_header(member) for member in members]
    dtype, shape = _parse(headers[0])
    if any(header != headers[0] for header in headers):
        raise _odd_one(members, headers)
    batch = np.empty((len(members), *shape), dtype=dtype)
    for member, header, target in zip(members, headers, _as_bytes(batch), strict=True):
        _copy(member, header, target)
    return batch


def pad_arrays(
    members: Sequence[Member],
) -> tuple[NDArray[np.floating[Any]], NDArray[np.bool_]]:
    """Arrays of (L_i, D) as one of (B, L, D), zero after each one's end, and a mask (B, L).

    Raises:
        CorruptShard: One is damaged, or of another width or format than the first.
    """
    headers = [_header(member) for member in members]
    dtypes, shapes = zip(*map(_parse, headers), strict=True)
    dtype, width = dtypes[0], shapes[0][-1:]
    if set(dtypes) != {dtype} or any(len(s) != 2 or s[1:] != width for s in shapes):
        raise _odd_one(members, headers)
    lengths = np.array([length for length, _ in shapes])
    longest = int(lengths.max())
    batch = np.empty((len(members), longest, *width), dtype=dtype)
    size_of_one = width[0] * dtype.itemsize
    for i, (member, header, target) in enumerate(
        zip(members, headers, _as_bytes(batch), strict=True)
    ):
        _copy(member, header, target[: lengths[i] * size_of_one])
        batch[i, lengths[i] :] = 0
    return batch, np.arange(longest) < lengths[:, None]


def _header(member: Member) -> bytes:
    """The header of a member that is as long as its header says."""
    header = member.content[:HEADER_BYTES].tobytes()
    try:
        dtype, shape = _parse(header)
        fits = HEADER_BYTES + math.prod(shape) * dtype.itemsize == len(member.content)
    except ValueError:
        fits = False
    if not fits:
        member.copy()  # says so if it is damaged
        raise CorruptShard(f"{member.where()}: is no array of floats as this version writes them")
    return header


@lru_cache(maxsize=4096)
def _parse(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Number format and shape.

    Raises:
        ValueError: It is no header that `dump_array` writes for floats.
    """
    dtype, shape, fortran_order, start = parse_header(header)
    empty = 0 in shape  # of none, another side may be as long as it likes
    if start != HEADER_BYTES or fortran_order or dtype.str not in FLOATS or empty:
        raise ValueError("no header of ours")
    return dtype, shape


def _copy(member: Member, header: bytes, target: NDArray[np.uint8]) -> None:
    """Copy the numbers and check the copy: what is used is what was checked.

    NumPy and isal let other threads run meanwhile.
    """
    np.copyto(target, member.content[HEADER_BYTES:])
    if crc32(target, crc32(header)) != member.crc32:
        raise member.damage()


def _as_bytes(batch: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """A batch as (B, bytes of one), the same memory."""
    size = math.prod(batch.shape[1:]) * batch.itemsize
    return batch.reshape(-1).view(np.uint8).reshape(len(batch), size)


def _odd_one(members: Sequence[Member], headers: Sequence[bytes]) -> CorruptShard:
    """The error that names the first array that does not go with the first of all."""
    first = _parse(headers[0])
    for member, header in zip(members, headers, strict=True):
        member.copy()
        dtype, shape = _parse(header)
        if dtype != first[0] or shape[-1:] != first[1][-1:] or len(shape) != len(first[1]):
            break
    return CorruptShard(f"{member.where()}: is {dtype} {shape}, others are {first[0]} {first[1]}")
