"""Arrays from the bytes of .npy files that nobody vouches for."""

import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def parse_npy(content: bytes) -> NDArray[Any]:
    """The array of an .npy file, read-only, in the memory of `content`.

    `numpy.load` would first make room for whatever size the header claims.

    Raises:
        ValueError: It is no such file, holds pickled objects, or has not the bytes that its header
            claims.
    """
    file = io.BytesIO(content)
    try:
        shape, fortran_order, dtype = _HEADERS[npy.read_magic(file)](file)
    except Exception as error:  # numpy raises whatever a damaged header leads it to
        raise ValueError(f"has a damaged header ({type(error).__name__})") from error
    start = file.tell()
    if dtype.hasobject:
        raise ValueError("holds pickled objects, which are not read")
    if any(not 0 <= length < 2**62 for length in shape) or not dtype.itemsize:
        raise ValueError(f"claims the shape {shape} of {dtype}")
    count = math.prod(shape)
    if start + count * dtype.itemsize != len(content):
        raise ValueError(f"claims the shape {shape} of {dtype}, which its bytes do not fill")
    flat = np.frombuffer(content, dtype, count, start)
    return flat.reshape(shape, order="F" if fortran_order else "C")
