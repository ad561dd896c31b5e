"""Arrays from the bytes of .npy files that nobody vouches for."""

import json
import math
import re
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import descr_to_dtype
from numpy.typing import NDArray

MAGIC = b"\x93NUMPY\x01\x00"
MAX_HEADER = 10_000


class Header(NamedTuple):
    """What an .npy file of format 1.0 says of itself; its numbers begin at byte `start`."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    start: int

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def parse_header(content: bytes) -> Header:
    """The header at the beginning of an .npy file.

    NumPy reads it with Python's parser, which fails now and then in Python 3.11 where several
    threads do so (https://github.com/python/cpython/issues/106905).

    Raises:
        ValueError: It is damaged, of another format, or of pickled objects.
    """
    start = len(MAGIC) + 2 + int.from_bytes(content[len(MAGIC) : len(MAGIC) + 2], "little")
    if not content.startswith(MAGIC) or start > min(len(content), MAX_HEADER):
        raise ValueError("has a damaged header")
    try:
        header = _literal(content[len(MAGIC) + 2 : start].decode("latin-1"))
        shape = tuple(int(length) for length in header["shape"])
        fortran_order = bool(header["fortran_order"])
        dtype = descr_to_dtype(_tuples(header["descr"]))
    except Exception as error:  # numpy raises whatever a damaged description leads it to
        raise ValueError("has a damaged header") from error
    if dtype.hasobject:
        raise ValueError("holds pickled objects, which are not read")
    if not all(0 <= length < 2**62 for length in shape) or not dtype.itemsize:
        raise ValueError(f"claims the shape {shape} of {dtype}, which cannot be")
    return Header(dtype, shape, fortran_order, start)


def parse_npy(content: bytes) -> NDArray[Any]:
    """The array of an .npy file, read-only, in the memory of `content`.

    `numpy.load` would first make room for whatever size the header claims.

    Raises:
        ValueError: It is no such file, or has not the bytes that its header claims.
    """
    header = parse_header(content)
    if header.size != len(content):
        raise ValueError(
            f"claims the shape {header.shape} of {header.dtype}, which its bytes do not fill"
        )
    flat = np.frombuffer(content, header.dtype, math.prod(header.shape), header.start)
    return flat.reshape(header.shape, order="F" if header.fortran_order else "C")


def _literal(text: str) -> Any:
    """A literal of Python as `numpy.save` writes it; tuples come as lists."""
    text = text.translate(str.maketrans("'()", '"[]'))
    text = re.sub(r",\s*([\]}])", r"\1", text)
    return json.loads(re.sub(r"\b(True|False)\b", lambda word: word[0].lower(), text))


def _tuples(value: Any) -> Any:
    """Fields of a dtype as numpy has them: a list of tuples."""
    if not isinstance(value, list):
        return value
    return [tuple(tuple(v) if isinstance(v, list) else v for v in field) for field in value]
