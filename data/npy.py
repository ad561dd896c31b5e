"""Arrays from the bytes of .npy files that nobody vouches for."""

import json
import math
import re
from typing import Any

import numpy as np
from numpy.lib.format import descr_to_dtype
from numpy.typing import NDArray

MAGIC = b"\x93NUMPY\x01\x00"
MAX_HEADER = 10_000


def parse_npy(content: bytes) -> NDArray[Any]:
    """The array of an .npy file of format 1.0, read-only, in the memory of `content`.

    `numpy.load` would first make room for whatever size the header claims. It also reads the header
    with Python's parser, which fails now and then in Python 3.11 where several threads do so
    (https://github.com/python/cpython/issues/106905).

    Raises:
        ValueError: It is no such file, holds pickled objects, or has not the bytes that its header
            claims.
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
    possible = all(0 <= length < 2**62 for length in shape)
    if not possible or start + math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"claims the shape {shape} of {dtype}, which its bytes do not fill")
    if not dtype.itemsize:
        raise ValueError(f"claims the shape {shape} of nothing")
    flat = np.frombuffer(content, dtype, math.prod(shape), start)
    return flat.reshape(shape, order="F" if fortran_order else "C")


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
