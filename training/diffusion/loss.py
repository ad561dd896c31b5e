"""The objective of training, one number a sample. The mean over samples and ranks is the step's."""

from typing import Any

from torch import Tensor

from conf.enums import Prediction
from training.diffusion.prediction import Denoiser, training_target
from training.diffusion.schedule import Schedule, add_noise


def diffusion_loss(
    denoiser: Denoiser,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    condition: Any,
    schedule: Schedule,
    prediction: Prediction,
    perturbation: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the denoiser on noised latents, sample by sample.

    Args:
        denoiser: Called once, as denoiser(noisy, timesteps, condition).
        latents: x_0, (B, ...), final latents: scaled to about unit variance.
        noise: Standard normal, same shape.
        timesteps: (B,), as `Schedule.at` takes them.
        condition: Handed on to the denoiser.
        schedule: On the device of `latents`.
        prediction: What the denoiser predicts.
        perturbation: Added to the noise that the denoiser sees and not to its target, like `noise`
            (Ning et al. 2023); None is none.

    Returns:
        (B,), float32, whatever the dtype of the denoiser's output.

    Source: Ho et al. 2020, Eq. 14; conditional, on latents: Rombach et al. 2022, Eq. 3.
    """
    seen = noise if perturbation is None else noise + perturbation
    noisy = add_noise(schedule, latents, seen, timesteps)
    output = denoiser(noisy, timesteps, condition)
    target = training_target(prediction, schedule, latents, noise, timesteps)
    return (output.float() - target.float()).square().flatten(1).mean(1)
