"""Micro-batches of cached latents to losses; the one place that makes latents final."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conf.groups import DiffusionConfig
from data.manifest import LatentSpec
from data.sample import LatentBatch
from training.diffusion.loss import diffusion_loss
from training.diffusion.prediction import Denoiser
from training.diffusion.schedule import Schedule
from training.models.autoencoder import sample_moments
from training.random import Purpose, normal, uniform


class Condition(NamedTuple):
    """Text embeddings (B, L, D), zero where padded, and their mask (B, L), True at real tokens."""

    text: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> "Condition":
        """Both on a device."""
        return Condition(self.text.to(device), self.mask.to(device))


def empty_condition(empty: Tensor, count: int) -> Condition:
    """The condition of `count` empty captions, from the embedding (L, D) of one."""
    text = empty.expand(count, *empty.shape)
    return Condition(text, torch.ones(text.shape[:2], dtype=torch.bool, device=empty.device))


def drop_captions(condition: Condition, empty: Tensor, dropped: Tensor) -> Condition:
    """Replace some captions by the empty one.

    Args:
        condition: Of B captions.
        empty: Embedding (L', D) of the empty caption.
        dropped: (B,), bool.

    Returns:
        A condition as long as the longer of L and L'.
    """
    length = max(condition.text.shape[1], len(empty))
    text, mask = (
        torch.nn.functional.pad(condition.text, (0, 0, 0, length - condition.text.shape[1])),
        torch.nn.functional.pad(condition.mask, (0, length - condition.mask.shape[1])),
    )
    empty_text = torch.nn.functional.pad(empty, (0, 0, 0, length - len(empty)))
    empty_mask = torch.arange(length, device=mask.device) < len(empty)
    return Condition(
        torch.where(dropped[:, None, None], empty_text, text),
        torch.where(dropped[:, None], empty_mask, mask),
    )


def final_latents(moments: Tensor, noise: Tensor, spec: LatentSpec) -> Tensor:
    """Draw latents from raw moments and scale them as the dataset's LatentSpec says.

    Args:
        moments: (B, 2C, H, W).
        noise: Standard normal, (B, C, H, W); zeros give the mean.
        spec: The dataset's.

    Returns:
        (B, C, H, W), about unit variance.
    """
    return (sample_moments(moments, noise) - _channels(spec.shift, moments)) * _channels(
        spec.scale, moments
    )


def raw_latents(latents: Tensor, spec: LatentSpec) -> Tensor:
    """Undo the scaling of `final_latents`, for the decoder."""
    return latents / _channels(spec.scale, latents) + _channels(spec.shift, latents)


def as_denoiser(model: nn.Module) -> Denoiser:
    """A UNet as the denoiser that the diffusion functions call."""

    def denoise(noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        result: Tensor = model(noisy, timesteps, condition.text, condition.mask)
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


def timestep_of(draws: Tensor, num_timesteps: int) -> Tensor:
    """Uniform draws in [0, 1) to timesteps in [0, T), int64."""
    return (draws * num_timesteps).long()


def latent_losses(
    model: nn.Module,
    batch: LatentBatch,
    config: DiffusionConfig,
    schedule: Schedule,
    spec: LatentSpec,
    empty: Tensor,
    seed: int,
    batch_size: int,
) -> Mapping[str, Tensor]:
    """Per-sample losses of a micro-batch: all that is random is keyed by (seed, place).

    Args:
        model: The denoiser.
        batch: As the loader gives it.
        config: Of the forward process.
        schedule: On the device to compute on.
        spec: Of the dataset.
        empty: Embedding (L, D) of the empty caption, on the device.
        seed: The run's.
        batch_size: Of the global batch, over which timesteps are stratified.

    Returns:
        `loss`: (B,).
    """
    device = schedule.alphas.device
    places = batch.places.tolist()
    moments = torch.from_numpy(batch.moments).float()
    shape = (spec.channels, *moments.shape[2:])
    posterior = normal(seed, places, Purpose.posterior, shape)
    latents = final_latents(moments, posterior, spec).to(device, memory_format=torch.channels_last)
    noise = normal(seed, places, Purpose.noise, shape).to(device, memory_format=torch.channels_last)
    draws = stratified(uniform(seed, places, Purpose.timestep), batch.places, batch_size)
    timesteps = timestep_of(draws, config.num_timesteps).to(device)
    dropped = (uniform(seed, places, Purpose.caption) < config.caption_dropout).to(device)
    # Moved in the number format in which it is stored: half the bytes.
    text, mask = torch.from_numpy(batch.text), torch.from_numpy(batch.text_mask)
    condition = Condition(text.to(device).float(), mask.to(device))
    condition = drop_captions(condition, empty, dropped)
    losses = diffusion_loss(
        as_denoiser(model), latents, noise, timesteps, condition, schedule, config.prediction
    )
    return {"loss": losses}


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None]
