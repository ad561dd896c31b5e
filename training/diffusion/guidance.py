"""Classifier-free guidance, as a denoiser made of a denoiser."""

from typing import Any

import torch
from torch import Tensor

from training.diffusion.prediction import Denoiser
from training.diffusion.variance import split_output


def guided(denoiser: Denoiser, empty_condition: Any, scale: float) -> Denoiser:
    """Push a denoiser's answer away from what it says without the condition.

    The conditional and the empty call are two calls, not one of twice the batch: a condition is
    opaque here, so there is no telling how to join two, and peak memory stays that of one batch.
    Whether the denoiser predicts epsilon, x_0 or velocity makes no difference to the sample.

    Args:
        denoiser: Called twice; for scale 1, where the empty call would cancel, once.
        empty_condition: The condition of an empty caption, for the batch to be sampled.
        scale: 0 ignores the condition, 1 is no guidance, more follows the condition harder.

    Returns:
        A denoiser: uncond + scale (cond - uncond). Variances, if there are any, are those of the
        conditional call: beyond their two bounds, which scaling may reach, they mean nothing.

    Source: Ho & Salimans 2022, Eq. 6, with scale = 1 + w.
    """
    if scale == 1:
        return denoiser

    def guided_denoiser(noisy: Tensor, timesteps: Tensor, condition: Any) -> Tensor:
        channels = noisy.shape[1]
        conditional, raw = split_output(denoiser(noisy, timesteps, condition), channels)
        unconditional, _ = split_output(denoiser(noisy, timesteps, empty_condition), channels)
        pushed = unconditional + scale * (conditional - unconditional)
        return pushed if raw is None else torch.cat([pushed, raw], dim=1)

    return guided_denoiser
