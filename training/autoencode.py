"""`ldm autoencoder`: trains stage one, and loads what it has trained."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conf.encoders import KLAutoencoderConfig
from conf.errors import UserError
from conf.schema import AutoencoderCommand
from data.collate import ImageCollator
from data.corpus import open_corpus
from data.manifest import canonical_json, sha256
from data.sample import ImageBatch
from data.storage import open_prefix
from training.engine.checkpoint import digest_of, require_checkpoint
from training.engine.pieces import EMA
from training.engine.world import current_world
from training.models.autoencoder import KLAutoencoder, kl_divergence
from training.random import Purpose, normal
from training.run import read_run, run_config
from training.task import Task
from training.train import train

# A narrow posterior to begin with: with unit noise the decoder sees little of the mean at first.
FIRST_LOG_VARIANCE = -4.0


def train_autoencoder(config: AutoencoderCommand) -> None:
    """Train the autoencoder: mean absolute error of the pixels plus a small KL term.

    Source: Rombach et al. 2022, section 3.1, without the perceptual and adversarial terms.
    """
    data = open_corpus(config.data, "images", config.batch_size, current_world().size)
    assert isinstance(config.autoencoder, KLAutoencoderConfig)
    torch.manual_seed(config.train.seed)
    model = build_autoencoder(config.autoencoder)
    check_sizes(model, data.buckets, f"data.url={config.data.url}")
    latent_channels = config.autoencoder.latent_channels

    def losses(wrapped: nn.Module, batch: ImageBatch, device: torch.device) -> Mapping[str, Tensor]:
        images = to_images(batch.images, device)
        height, width = (side // model.downsampling for side in images.shape[-2:])
        shape = (latent_channels, height, width)
        noise = normal(config.train.seed, batch.places, Purpose.posterior, shape)
        restored, moments = wrapped(images, noise.to(device))
        reconstruction = (restored.float() - images).abs().flatten(1).mean(1)
        divergence = kl_divergence(moments)
        return {
            "loss": reconstruction + config.kl_weight * divergence,
            "reconstruction": reconstruction,
            "kl": divergence,
        }

    train(
        config, Task("autoencoder", model, data, ImageCollator(config.data.max_bad_share), losses)
    )


def build_autoencoder(config: KLAutoencoderConfig) -> KLAutoencoder:
    """A fresh autoencoder with a narrow posterior.

    Raises:
        UserError: Sizes that cannot work.
    """
    try:
        model = KLAutoencoder(config)
    except ValueError as error:
        raise UserError("autoencoder", str(error), "choose sizes that fit") from None
    with torch.no_grad():
        model.moments_conv.bias[config.latent_channels :] += FIRST_LOG_VARIANCE
    return model


def load_trained_autoencoder(url: str, setting: str) -> tuple[KLAutoencoder, str]:
    """The autoencoder of an `ldm autoencoder` run, with its averaged weights.

    Args:
        url: The run.
        setting: The setting that names it, for messages.

    Returns:
        The model in evaluation mode, and the fingerprint of its sizes and weights.

    Raises:
        UserError: There is no such run, or it has saved nothing yet.
    """
    out = open_prefix(url, setting)
    run = read_run(out, "autoencoder")
    checkpoint = require_checkpoint(out, [EMA])
    seen, wanted = checkpoint.progress.samples_seen, run_config(out)["train"]["samples"]
    if seen < wanted:
        raise UserError(
            f"{setting}={url}",
            f"is not finished ({seen:,} of {wanted:,} samples)",
            "run its `ldm autoencoder` command again to the end",
        )
    model = KLAutoencoder(KLAutoencoderConfig(**run["autoencoder"]))
    averages = checkpoint.averages()
    model.load_state_dict(averages)
    model.eval().requires_grad_(False)
    identity = {"autoencoder": run["autoencoder"], "weights": digest_of(averages)}
    return model.to(memory_format=torch.channels_last), sha256(canonical_json(identity))


def check_sizes(model: nn.Module, buckets: Iterable[tuple[int, int]], setting: str) -> None:
    """Refuse images that the autoencoder cannot halve as often as it has to.

    Raises:
        UserError: A side is no multiple of the downsampling factor.
    """
    factor = model.downsampling
    for height, width in buckets:
        if height % factor or width % factor:
            near = max(1, round(height / factor)) * factor
            raise UserError(
                setting,
                f"has images of {height}x{width} pixels, and the autoencoder divides by {factor}",
                f"shard again with sizes that are multiples of {factor}, such as {near}",
            )


def to_images(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Pixels (B, H, W, 3) as the models take them: float32 in [-1, 1], (B, 3, H, W)."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
