"""Activation checkpointing: blocks forget their inside and compute it again on the way back."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from training.models.layers import ResBlock, SpatialTransformer


def recompute_blocks(model: nn.Module) -> None:
    """Have every residual block and transformer of a model keep only what goes into it.

    The same numbers bit for bit: the second pass draws the first one's dropout. The model's class
    knows nothing of it.

    Source: Chen et al. 2016.
    """
    for module in model.modules():
        if isinstance(module, ResBlock | SpatialTransformer):
            once = partial(checkpoint, module.forward, use_reentrant=False)
            module.forward = once  # type: ignore[method-assign]
