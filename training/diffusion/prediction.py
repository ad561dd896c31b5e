"""What a denoiser predicts, and how each kind of prediction turns into the others.

The three kinds are affine in one another given x_t, so a loss on one is a weighted loss on the
next, and guidance may act on any of them.
"""

from collections.abc import Callable
from typing import Any

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

    Source: Salimans & Ho 2022, Sec. 4: v = alpha epsilon - sigma x_0.
    """
    if kind is Prediction.epsilon:
        return noise
    if kind is Prediction.x0:
        return latents
    alpha, sigma = schedule.at(timesteps, latents.ndim)
    return alpha * noise - sigma * latents


def to_x0_and_epsilon(
    kind: Prediction, output: Tensor, noisy: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Read a denoiser's output as a clean latent and the noise on it.

    The two always satisfy noisy = alpha x_0 + sigma epsilon. Errors of an epsilon prediction are
    divided by alpha in x_0, those of an x_0 prediction by sigma in epsilon; velocity has neither.

    Args:
        kind: What `output` is.
        output: The denoiser's answer, (B, ...).
        noisy: x_t, same shape.
        alpha: Signal at the timestep, in (0, 1), a number or a tensor that broadcasts.
        sigma: Noise at the timestep, in (0, 1], alike.

    Returns:
        x_0 and epsilon, each of the same shape.

    Source: Salimans & Ho 2022, Sec. 4 and Appendix D.
    """
    if kind is Prediction.epsilon:
        return (noisy - sigma * output) / alpha, output
    if kind is Prediction.x0:
        return output, (noisy - alpha * output) / sigma
    return alpha * noisy - sigma * output, sigma * noisy + alpha * output
