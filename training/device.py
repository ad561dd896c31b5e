"""Where a single process computes, and in what precision."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from conf.enums import Precision
from data.ranks import local_rank

DTYPES = {
    Precision.fp32: torch.float32,
    Precision.bf16: torch.bfloat16,
    Precision.fp16: torch.float16,
}
# Of glibc's mallopt: from how many bytes on a piece comes from the kernel by itself, and how many
# free ones at the end of the heap are given back.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1


def pick_device() -> torch.device:
    """This rank's GPU, where there is one, made the current one; else the CPU."""
    if not torch.cuda.is_available():
        keep_freed_memory()
        return torch.device("cpu")
    # Several ranks of a node may see all of its GPUs, or each its own.
    device = torch.device("cuda", local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)  # or streams and events would be those of the first
    return device


@cache
def keep_freed_memory() -> bool:
    """Have this process keep the memory of tensors that are gone for those that come.

    glibc takes large pieces from the kernel one by one and gives each back at once, and the kernel
    fills every page of the next one with zeros: a tenth to a fifth of the time of an encoder.

    Returns:
        Whether that could be told to it; it cannot where there is no glibc.
    """
    try:
        tell = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(tell(M_MMAP_THRESHOLD, 2**30) and tell(M_TRIM_THRESHOLD, 2**31 - 1))


@contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 that is float32, within a block.

    By default cuDNN computes float32 convolutions with the 10 bits of TF32: what a cache holds
    would depend on the GPU that made it.
    """
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def autocast_forward(model: nn.Module, precision: Precision, device: torch.device) -> None:
    """Have the model's own forward run in 16 bits where that is asked for; weights stay float32.

    Inside the model, because DeepSpeed switches off an autocast around it.
    """
    if precision is not Precision.fp32:
        autocast = torch.autocast(device.type, DTYPES[precision])
        model.forward = autocast(model.forward)  # type: ignore[method-assign]


def together_on(device: str, wanted: bool | None) -> bool:
    """Whether images lie in memory with their channels together, on a `cuda` or a `cpu`.

    CUDA's convolutions want them so. On CPUs oneDNN reorders what it gets in any case, and weights
    that are laid out so make it copy their gradients once more.
    """
    return device == "cuda" if wanted is None else wanted


def lay_out_plainly(model: nn.Module) -> None:
    """Have a model take images with each channel by itself in memory, whoever gives them.

    A convolution gives what it takes, so that all that follows is laid out so too.
    """

    def contiguous(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        images, *others = given
        return images.contiguous(), *others

    model.register_forward_pre_hook(contiguous)
