"""A denoiser with what it takes to make images of captions, and how images are laid out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conf.diffusion import DiffusionConfig, SamplerConfig
from data.spec import LatentSpec
from data.stream import Dataset
from training.device import exact_float32
from training.diffusion.sampler import OnStep, sample
from training.diffusion.schedule import Schedule
from training.encoders import AnyAutoencoder
from training.feed import encode_captions
from training.models.text import TextEncoder
from training.random import Purpose, normal
from training.step import Condition, as_denoiser, raw_latents


@dataclass(frozen=True, slots=True)
class Painter:
    """Everything that turns captions into images, checked to be what the denoiser is trained with.

    Attributes:
        unet: Averaged weights, in evaluation mode, when images are made.
        autoencoder: The one that the latents were made with.
        text_encoder: The one that the captions were encoded with.
        empty: The condition of the empty caption.
        spec: What the latents mean.
        schedule: The forward process.
        diffusion: Its configuration.
        device: Where all of it is.
    """

    unet: nn.Module
    autoencoder: AnyAutoencoder
    text_encoder: TextEncoder
    empty: Condition
    spec: LatentSpec
    schedule: Schedule
    diffusion: DiffusionConfig
    device: torch.device

    def encode_captions(self, captions: list[str]) -> Condition:
        """The condition of captions, on the model's device."""
        return encode_captions(self.text_encoder, captions).to(self.device)


@dataclass(frozen=True, slots=True)
class TrainedModel(Painter):
    """What an `ldm train` run has made.

    Attributes:
        samples_seen: How long it was trained.
        weights: SHA-256 of the averaged weights.
        datasets: Those that it was trained on.
    """

    samples_seen: int
    weights: str
    datasets: tuple[Dataset, ...]

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> Tensor:
        """Moments or means of images (B, 3, H, W) in [-1, 1], as the run's latents have them."""
        with exact_float32():
            return self.autoencoder.encode(images)[:, : self.spec.stored_channels]


def sample_images(
    model: Painter,
    captions: list[str],
    places: range,
    config: SamplerConfig,
    seed: int,
    on_step: OnStep | None = None,
) -> NDArray[np.uint8]:
    """Images (B, H, W, 3), uint8, of captions, each by its caption, seed and place alone.

    The arguments are those of `sample_latents`.
    """
    latents = sample_latents(model, captions, places, config, seed, on_step)
    with torch.inference_mode():
        images = model.autoencoder.decode(raw_latents(latents, model.spec))
    return to_pixels(images)


def sample_latents(
    model: Painter,
    captions: list[str],
    places: Sequence[int],
    config: SamplerConfig,
    seed: int,
    on_step: OnStep | None = None,
) -> Tensor:
    """Final latents (B, C, H, W) of captions, each by its caption, seed and place alone.

    Args:
        model: What makes them.
        captions: One an image.
        places: As many; the noise of each follows from its place.
        config: How to sample.
        seed: Of the noise.
        on_step: Called after each step of the sampler.
    """
    shape = (model.spec.channels, model.spec.size, model.spec.size)

    def noise_of_step(step: int) -> Tensor:
        return noise(step + 1)

    def noise(draw: int) -> Tensor:
        return normal(seed, places, Purpose.sampling, shape, draw).to(model.device)

    return sample(
        config,
        as_denoiser(model.unet),
        noise(0),
        model.encode_captions(captions),
        model.empty.repeated(len(captions)),
        model.schedule,
        model.diffusion.prediction,
        noise_of_step,
        on_step,
    )


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Images (B, 3, H, W) in [-1, 1] as uint8, (B, H, W, 3)."""
    pixels = images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def grid(images: NDArray[np.uint8], columns: int, border: int = 2) -> NDArray[np.uint8]:
    """Lay images (B, H, W, 3) out in rows on white."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    step_y, step_x = height + border, width + border
    canvas = np.full((rows * step_y + border, columns * step_x + border, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = border + i // columns * step_y, border + i % columns * step_x
        canvas[y : y + height, x : x + width] = image
    return canvas
