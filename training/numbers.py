"""Tensors as a cache stores them, and back."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def as_array(values: Tensor) -> NDArray[Any]:
    """A tensor on the CPU as an array; bfloat16, which NumPy has not, as its bits in uint16."""
    if values.dtype is torch.bfloat16:
        return values.contiguous().view(torch.int16).numpy().view(np.uint16)
    return values.contiguous().numpy()


def as_tensor(array: NDArray[Any]) -> Tensor:
    """An array as `as_array` gives it as a tensor, without a copy."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
