"""Micro-batches of cached latents to losses; the one place that makes latents final."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conf.diffusion import DiffusionConfig
from data.sample import LatentBatch
from data.spec import LatentSpec
from training.diffusion.draws import drawn_times
from training.diffusion.loss import diffusion_loss, hybrid_losses
from training.diffusion.prediction import Denoiser
from training.diffusion.schedule import Schedule
from training.diffusion.variance import VLB_WEIGHT
from training.diffusion.weighting import loss_weights
from training.models.autoencoder import sample_moments
from training.numbers import as_tensor
from training.random import Purpose, normal, uniform


class Condition(NamedTuple):
    """What the denoiser knows of captions.

    Attributes:
        text: Embeddings, (B, L, D), zero where padded.
        mask: (B, L), True at real tokens.
        pooled: A vector for each caption, (B, P), or None.
    """

    text: Tensor
    mask: Tensor
    pooled: Tensor | None = None

    def to(self, device: torch.device) -> "Condition":
        """All of it on a device."""
        pooled = None if self.pooled is None else self.pooled.to(device)
        return Condition(self.text.to(device), self.mask.to(device), pooled)

    def repeated(self, count: int) -> "Condition":
        """That of one caption, for `count` samples."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return Condition(self.text.expand(count, -1, -1), self.mask.expand(count, -1), pooled)


Embed = Callable[[LatentBatch], Condition]


def condition_of_one(text: Tensor, pooled: Tensor | None = None) -> Condition:
    """The condition of one caption from its embedding (L, D) and its vector (P,)."""
    mask = torch.ones(1, len(text), dtype=torch.bool, device=text.device)
    return Condition(text[None], mask, None if pooled is None else pooled[None])


def drop_captions(condition: Condition, empty: Condition, dropped: Tensor) -> Condition:
    """Replace some captions by the empty one.

    Args:
        condition: Of B captions, (B, L, D).
        empty: Of the empty caption, (1, L', D).
        dropped: (B,), bool.

    Returns:
        A condition as long as the longer of L and L'.
    """
    length = max(condition.text.shape[1], empty.text.shape[1])
    (text, mask), (empty_text, empty_mask) = (_padded(one, length) for one in (condition, empty))
    pooled = condition.pooled
    if pooled is not None and empty.pooled is not None:
        pooled = torch.where(dropped[:, None], empty.pooled, pooled)
    return Condition(
        torch.where(dropped[:, None, None], empty_text, text),
        torch.where(dropped[:, None], empty_mask, mask),
        pooled,
    )


def _padded(condition: Condition, length: int) -> tuple[Tensor, Tensor]:
    more = length - condition.text.shape[1]
    pad = torch.nn.functional.pad
    return pad(condition.text, (0, 0, 0, more)), pad(condition.mask, (0, more))


def final_latents(moments: Tensor, noise: Tensor, spec: LatentSpec) -> Tensor:
    """Draw latents from raw moments and scale them as the dataset's LatentSpec says.

    Args:
        moments: (B, 2C, H, W); (B, C, H, W) where means alone are stored, which are not drawn from.
        noise: Standard normal, (B, C, H, W); zeros give the mean.
        spec: The dataset's.

    Returns:
        (B, C, H, W), about unit variance.
    """
    drawn = moments if spec.stored == "mean" else sample_moments(moments, noise)
    return (drawn - _channels(spec.shift, moments)) * _channels(spec.scale, moments)


def mean_of(moments: Tensor, spec: LatentSpec) -> Tensor:
    """The means (..., C, H, W) of what a dataset stores, unscaled."""
    return moments[..., : spec.channels, :, :]


def raw_latents(latents: Tensor, spec: LatentSpec) -> Tensor:
    """Undo the scaling of `final_latents`, for the decoder."""
    return latents / _channels(spec.scale, latents) + _channels(spec.shift, latents)


def as_denoiser(model: nn.Module) -> Denoiser:
    """A UNet as the denoiser that the diffusion functions call; they split off variances."""

    def denoise(noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        pooled = () if condition.pooled is None else (condition.pooled,)
        result: Tensor = model(noisy, timesteps, condition.text, condition.mask, *pooled)
        return result

    return denoise


def stratified(draws: Tensor, places: NDArray[np.int64], batch_size: int) -> Tensor:
    """Spread uniform draws evenly over a global batch: one in each of its `batch_size` equal parts.

    Each draw stays uniform over [0, 1); their spread over a batch, and with it the variance of the
    loss, is smaller. The part follows from the place, so every world size draws the same.

    Source: Kingma et al. 2021, appendix I.1, with one offset a sample instead of one a batch.
    """
    parts = torch.from_numpy(places % batch_size)
    return (parts + draws) / batch_size


def noise_of(
    config: DiffusionConfig, seed: int, places: list[int], shape: tuple[int, ...]
) -> Tensor:
    """The noise of a micro-batch, (B, C, H, W): standard normal, and the offset of whole channels.

    Source: the offset: Guttenberg 2023, "Diffusion with offset noise".
    """
    noise = normal(seed, places, Purpose.noise, shape)
    if config.offset_noise:
        offset = normal(seed, places, Purpose.offset, (shape[0], 1, 1))
        noise = noise + config.offset_noise * offset
    return noise


def latent_losses(
    model: nn.Module,
    batch: LatentBatch,
    config: DiffusionConfig,
    schedule: Schedule,
    spec: LatentSpec,
    empty: Condition,
    seed: int,
    batch_size: int,
    embed: Embed | None = None,
) -> Mapping[str, Tensor]:
    """Per-sample losses of a micro-batch: all that is random is keyed by (seed, place).

    Args:
        model: The denoiser.
        batch: As the loader gives it.
        config: Of the forward process.
        schedule: On the device to compute on.
        spec: Of the dataset.
        empty: Of the empty caption, (1, L, D), on the device.
        seed: The run's.
        batch_size: Of the global batch, over which timesteps are stratified.
        embed: Makes conditions of ids of tokens, where the dataset stores those.

    Returns:
        `loss`: (B,), weighted. With learned variances also `bound`, (B,): estimates of the
        variational bound in bits per element, which is a part of the loss then.
    """
    device = schedule.alphas.device
    places = batch.places.tolist()
    moments = as_tensor(batch.moments).float()
    shape = (spec.channels, *moments.shape[2:])
    posterior = normal(seed, places, Purpose.posterior, shape)
    latents = final_latents(moments, posterior, spec).to(device, memory_format=torch.channels_last)
    noise = noise_of(config, seed, places, shape).to(device, memory_format=torch.channels_last)
    draws = uniform(seed, places, Purpose.timestep)
    if config.stratified:
        draws = stratified(draws, batch.places, batch_size)
    timesteps = schedule.times_at(drawn_times(config, draws)).to(device)
    perturbation = None
    if config.input_perturbation:
        drawn = normal(seed, places, Purpose.perturbation, shape)
        perturbation = config.input_perturbation * drawn.to(device)
    dropped = (uniform(seed, places, Purpose.caption) < config.caption_dropout).to(device)
    condition = embed(batch) if embed else stored_condition(batch, device)
    condition = drop_captions(condition.to(device), empty, dropped)
    given = (latents, noise, timesteps, condition, schedule, config.prediction, perturbation)
    weights = loss_weights(config, *schedule.at(timesteps, 1))
    if not config.learned_variance:
        return {"loss": diffusion_loss(as_denoiser(model), *given) * weights}
    errors, terms = hybrid_losses(as_denoiser(model), *given)
    bound = schedule.num_timesteps * terms  # one term stands for all of them
    return {"loss": errors * weights + VLB_WEIGHT * bound, "bound": bound}


def stored_condition(batch: LatentBatch, device: torch.device) -> Condition:
    """The condition of cached embeddings; they are moved as they are stored, at half the bytes."""
    pooled = None if batch.pooled is None else as_tensor(batch.pooled).to(device).float()
    mask = torch.from_numpy(batch.text_mask).to(device)
    return Condition(as_tensor(batch.text).to(device).float(), mask, pooled)


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None]
