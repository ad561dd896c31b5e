"""The objective of training, one number a sample. The mean over samples and ranks is the step's."""

from typing import Any

from torch import Tensor

from conf.enums import Prediction
from training.diffusion.prediction import Denoiser, training_target
from training.diffusion.schedule import Schedule, add_noise
from training.diffusion.variance import bound_terms, split_output


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
    """Mean squared error of the denoiser's prediction on noised latents, sample by sample.

    What the denoiser says of variances, if it does, does not count.

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
    given = (latents, noise, timesteps)
    output = _answer(denoiser, *given, condition, schedule, perturbation)
    predicted, _ = split_output(output, latents.shape[1])
    return _squared_error(predicted, *given, schedule, prediction)


def hybrid_losses(
    denoiser: Denoiser,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    condition: Any,
    schedule: Schedule,
    prediction: Prediction,
    perturbation: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The two parts of the loss of a denoiser that says variances, of one call of it.

    Args:
        denoiser: Answers with 2C channels for C.
        latents: x_0, (B, C, ...). This and all the rest as for `diffusion_loss`.
        noise: Standard normal, same shape.
        timesteps: (B,), int64.
        condition: Handed on.
        schedule: Discrete.
        prediction: What the first C channels are.
        perturbation: The bound is that of x_t without it.

    Returns:
        (B,) each, float32: the squared error, and `variance.bound_terms`.

    Source: Nichol & Dhariwal 2021, Eq. 16.
    """
    given = (latents, noise, timesteps)
    output = _answer(denoiser, *given, condition, schedule, perturbation)
    predicted, raw = split_output(output, latents.shape[1])
    assert raw is not None, "a denoiser without variances"
    error = _squared_error(predicted, *given, schedule, prediction)
    noisy = add_noise(schedule, latents, noise, timesteps)
    return error, bound_terms(predicted, raw, latents, noisy, timesteps, schedule, prediction)


def _answer(
    denoiser: Denoiser,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    condition: Any,
    schedule: Schedule,
    perturbation: Tensor | None,
) -> Tensor:
    """What the denoiser says of noised latents."""
    seen = noise if perturbation is None else noise + perturbation
    return denoiser(add_noise(schedule, latents, seen, timesteps), timesteps, condition)


def _squared_error(
    predicted: Tensor,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    schedule: Schedule,
    prediction: Prediction,
) -> Tensor:
    """Mean squared error of each sample, (B,), float32."""
    target = training_target(prediction, schedule, latents, noise, timesteps)
    return (predicted.float() - target.float()).square().flatten(1).mean(1)
