"""Averaged weights with a half-life counted in samples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def ema_weight(samples_seen: int, batch_size: int, half_life: int) -> float:
    """How far the average moves towards the weights after a step.

    The half-life is at most a tenth of the samples seen, so that the start is forgotten.

    Source: Karras et al. 2024 (EDM2), section 3.1 for averages in training images; the ramp is that
    of the published code of Karras et al. 2022, with a tenth in the place of a twentieth.
    """
    effective = min(half_life, max(samples_seen, 1) * 0.1)
    return 1.0 - 0.5 ** (batch_size / max(effective, 1e-8))


def update_ema(ema: list[Tensor], weights: list[Tensor], weight: float) -> None:
    """Move the averages towards the weights in place, in one fused call for all tensors."""
    torch._foreach_lerp_(ema, weights, weight)


@contextmanager
def averaged(module: nn.Module, ema: Sequence[Tensor]) -> Iterator[None]:
    """The averaged weights in a model's place, in evaluation mode, for the length of a block.

    Args:
        module: The plain model.
        ema: Whole, in the order of its parameters; not to be changed within the block.
    """
    training = module.training
    try:
        with pointed(module, ema):
            module.eval()
            yield
    finally:
        module.train(training)


@contextmanager
def pointed(module: nn.Module, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Other tensors in the place of a model's weights, for the length of a block.

    Parameters point to them and then back to their own memory: nothing is copied, so that the
    weights come back bit for bit, and an engine that keeps views of them notices nothing.

    Args:
        module: The plain model.
        tensors: In the order of its parameters; not to be changed within the block.
    """
    parameters = list(module.parameters())
    own = [parameter.data for parameter in parameters]
    try:
        for parameter, tensor in zip(parameters, tensors, strict=True):
            parameter.data = tensor
        yield
    finally:
        for parameter, weights in zip(parameters, own, strict=True):
            parameter.data = weights
