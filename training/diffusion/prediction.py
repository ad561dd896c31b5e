"""What a denoiser predicts, and how each kind of prediction turns into the others.

The kinds are affine in one another given x_t, so a loss on one is a weighted loss on the
next, and guidance may act on any of them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from conf.enums import Prediction
from training.diffusion.schedule import Schedule

# (x_t (B, ...), timesteps (B,) int64, condition) -> prediction (B, ...). What a condition is, only
# the denoiser knows; this package hands it on.
Denoiser = Callable[[Tensor, Tensor, Any], Tensor]


def training_target(
    kind: Prediction, schedule: Schedule, latents: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """What the denoiser should have answered for x_t = alpha_t latents + sigma_t noise.

    Args:
        kind: What the denoiser predicts.
        schedule: On the device of `latents`.
        latents: x_0, (B, ...).
        noise: epsilon, same shape.
        timesteps: (B,), int64, in [0, T).

    Returns:
        The target, same shape.

    Source: Salimans & Ho 2022, Sec. 4: v = alpha epsilon - sigma x_0; flow: Liu et al. 2023, Eq. 1,
    with t from data to noise.
    """
    if kind is Prediction.epsilon:
        return noise
    if kind is Prediction.x0:
        return latents
    if kind is Prediction.flow:
        return noise - latents
    alpha, sigma = schedule.at(timesteps, latents.ndim)
    return alpha * noise - sigma * latents


def to_x0_and_epsilon(
    kind: Prediction, output: Tensor, noisy: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Read a denoiser's output as a clean latent and the noise on it.

    The two always satisfy noisy = alpha x_0 + sigma epsilon. Errors of an epsilon prediction are
    divided by alpha in x_0, those of an x_0 prediction by sigma in epsilon; velocity and flow have
    neither.

    Args:
        kind: What `output` is.
        output: The denoiser's answer, (B, ...).
        noisy: x_t, same shape.
        alpha: Signal at the timestep, in [0, 1), above 0 for epsilon; a number or a tensor that
            broadcasts.
        sigma: Noise at the timestep, in (0, 1], alike.

    Returns:
        x_0 and epsilon, each of the same shape.

    Source: Salimans & Ho 2022, Sec. 4 and Appendix D, here for any alpha and sigma.
    """
    if kind is Prediction.epsilon:
        return (noisy - sigma * output) / alpha, output
    if kind is Prediction.x0:
        return output, (noisy - alpha * output) / sigma
    if kind is Prediction.flow:
        total = alpha + sigma
        return (noisy - sigma * output) / total, (noisy + alpha * output) / total
    power = alpha**2 + sigma**2
    return (alpha * noisy - sigma * output) / power, (sigma * noisy + alpha * output) / power


def x0_error_per_output_error(kind: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
    """By how much the squared error of x_0 exceeds that of a denoiser's output.

    Args:
        kind: What the denoiser predicts.
        alpha: Signal, any shape; above 0 for epsilon.
        sigma: Noise, same shape.

    Returns:
        The square of dx_0 / d output in `to_x0_and_epsilon`, same shape.
    """
    if kind is Prediction.epsilon:
        return (sigma / alpha) ** 2
    if kind is Prediction.x0:
        return torch.ones_like(alpha)
    if kind is Prediction.flow:
        return (sigma / (alpha + sigma)) ** 2
    return (sigma / (alpha**2 + sigma**2)) ** 2
