"""Averaged weights with a half-life counted in samples."""

import torch
from torch import Tensor


def ema_weight(samples_seen: int, batch_size: int, half_life: int) -> float:
    """How far the average moves towards the weights after a step.

    The half-life is at most a tenth of the samples seen, so that the start is forgotten.

    Source: Karras et al. 2024 (EDM2), section 3.1 for averages in training images; the ramp is that
    of the published code of Karras et al. 2022.
    """
    effective = min(half_life, max(samples_seen, 1) * 0.1)
    return 1.0 - 0.5 ** (batch_size / max(effective, 1e-8))


def update_ema(ema: list[Tensor], weights: list[Tensor], weight: float) -> None:
    """Move the averages towards the weights in place, in one fused call for all tensors."""
    torch._foreach_lerp_(ema, weights, weight)
