"""Where a single process computes, and in what precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from conf.enums import Precision
from data.ranks import local_rank


def pick_device() -> torch.device:
    """This rank's GPU, where there is one, made the current one; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Several ranks of a node may see all of its GPUs, or each its own.
    device = torch.device("cuda", local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)  # or streams and events would be those of the first
    return device


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
    """Have the model's own forward run in bf16 where that is asked for; weights stay float32.

    Inside the model, because DeepSpeed switches off an autocast around it.
    """
    if precision is Precision.bf16:
        autocast = torch.autocast(device.type, torch.bfloat16)
        model.forward = autocast(model.forward)  # type: ignore[method-assign]
