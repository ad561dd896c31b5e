"""Where a single process computes, and in what precision."""

import os

import torch
from torch import nn

from conf.enums import Precision


def pick_device() -> torch.device:
    """This rank's GPU, where there is one, with float32 that is float32.

    By default cuDNN computes float32 convolutions with the 10 bits of TF32: what a cache holds
    would depend on the GPU that made it.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Several ranks of a node may see all of its GPUs, or each its own.
    rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
    return torch.device("cuda", rank % torch.cuda.device_count())


def autocast_forward(model: nn.Module, precision: Precision, device: torch.device) -> None:
    """Have the model's own forward run in bf16 where that is asked for; weights stay float32.

    Inside the model, because DeepSpeed switches off an autocast around it.
    """
    if precision is Precision.bf16:
        autocast = torch.autocast(device.type, torch.bfloat16)
        model.forward = autocast(model.forward)  # type: ignore[method-assign]
