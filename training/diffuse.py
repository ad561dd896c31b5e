"""`ldm train`: trains the denoiser on a dataset of latents, and loads what it has trained."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from conf.encoders import TextEncoderConfig
from conf.enums import Precision
from conf.errors import UserError
from conf.groups import DiffusionConfig, UNetConfig
from conf.schema import TrainCommand
from data.arrays import load_array
from data.collate import latent_batch
from data.corpus import open_corpus
from data.manifest import EMPTY_TEXT, LatentSpec, Manifest, sha256
from data.sample import LatentBatch
from data.storage import Prefix, open_prefix
from data.stream import Dataset, open_dataset
from data.tar import CorruptShard
from training.autoencode import load_trained_autoencoder
from training.device import autocast_forward, pick_device
from training.diffusion.schedule import Schedule, build_schedule
from training.engine.checkpoint import EMA, require_checkpoint
from training.engine.world import current_world
from training.loop import Task, read_run, run_config, train
from training.models.autoencoder import KLAutoencoder
from training.models.text import TextEncoder, load_text_encoder
from training.models.unet import UNet
from training.step import Condition, latent_losses


def train_denoiser(config: TrainCommand) -> None:
    """Train the UNet of a configuration; channels and widths come from the dataset's manifest."""
    data = open_corpus(config.data, "latents", config.batch_size, current_world().size)
    spec = data.main.manifest.latents
    assert spec is not None
    torch.manual_seed(config.train.seed)
    check_halvings(config.unet, spec, data.buckets)
    model = build_unet(config.unet, data.main.manifest)
    empty = torch.from_numpy(load_empty_text(data.main)).float()

    def losses(
        wrapped: nn.Module, batch: LatentBatch, device: torch.device
    ) -> Mapping[str, Tensor]:
        on_device = schedule.to(device)
        return latent_losses(
            wrapped,
            batch,
            config.diffusion,
            on_device,
            spec,
            empty.to(device),
            config.train.seed,
            config.batch_size,
        )

    schedule = build_schedule(config.diffusion)
    train(config, Task("train", model, data, latent_batch, losses))


def build_unet(config: UNetConfig, manifest: Manifest) -> UNet:
    """A fresh UNet with the channels and widths of a dataset of latents.

    Raises:
        UserError: Sizes that cannot work.
    """
    assert manifest.latents is not None and manifest.text is not None
    try:
        return UNet(config, manifest.latents.channels, manifest.text.width)
    except ValueError as error:
        raise UserError("unet", str(error), "choose sizes that fit") from None


def check_halvings(
    config: UNetConfig, spec: LatentSpec, buckets: Iterable[tuple[int, int]]
) -> None:
    """Refuse latents that the UNet cannot halve as often as it has to.

    Args:
        config: Its sizes.
        spec: What the latents mean.
        buckets: Height and width in pixels of the images that they were made of.

    Raises:
        UserError: A side is no multiple of what the levels halve it by.
    """
    halvings = 2 ** (len(config.channel_mult) - 1)
    for side in sorted({side for bucket in buckets for side in bucket}):
        places = side // spec.downsampling
        if places % halvings:
            raise UserError(
                f"unet.channel_mult={list(config.channel_mult)}",
                f"halves latents of {places} places more often than they can be",
                "give fewer levels",
            )


def load_empty_text(data: Dataset) -> Any:
    """The embedding (L, D) of the empty caption, as the manifest pins it.

    Raises:
        CorruptShard: It is not what the manifest says.
    """
    assert data.manifest.text is not None
    where = f"{data.prefix.url}/{EMPTY_TEXT}"
    try:
        content = data.prefix.read(EMPTY_TEXT)
    except FileNotFoundError:
        raise CorruptShard(f"{where}: is missing; cache again") from None
    if sha256(content) != data.manifest.text.empty_sha256:
        raise CorruptShard(f"{where}: is not what the manifest pins; cache again")
    return load_array(content)


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """Everything that turns prompts into images, checked to be what the denoiser was trained with.

    Attributes:
        unet: Averaged weights, in evaluation mode.
        autoencoder: The one that the latents were made with.
        text_encoder: The one that the captions were encoded with.
        empty: Embedding (L, D) of the empty caption.
        spec: What the latents mean.
        schedule: The forward process.
        diffusion: Its configuration.
        samples_seen: How long it was trained.
        weights: SHA-256 of the averaged weights.
        latents: The datasets that it was trained on; the first says what latents mean.
        device: Where all of it is.
    """

    unet: UNet
    autoencoder: KLAutoencoder
    text_encoder: TextEncoder
    empty: Tensor
    spec: LatentSpec
    schedule: Schedule
    diffusion: DiffusionConfig
    samples_seen: int
    weights: str
    latents: tuple[Dataset, ...]
    device: torch.device

    def encode_captions(self, captions: list[str]) -> Condition:
        """The condition of captions, on the model's device."""
        encoding = self.text_encoder.encode(captions)
        return Condition(encoding.embeddings, encoding.mask).to(self.device)


def load_trained(url: str) -> TrainedModel:
    """Load an `ldm train` run with the autoencoder and text encoder that its latents came from.

    Raises:
        UserError: There is no such run, or one of the two is no longer what it was.
    """
    out = open_prefix(url, "checkpoint")
    run = read_run(out, "train")
    checkpoint = require_checkpoint(out)
    diffusion = OmegaConf.to_object(OmegaConf.merge(DiffusionConfig, run["diffusion"]))
    assert isinstance(diffusion, DiffusionConfig)
    data = datasets_of(out, run)
    manifest = data[0].manifest
    assert manifest.latents is not None and manifest.text is not None
    unet = build_unet(UNetConfig(**run["unet"]), manifest)
    unet.load_state_dict(checkpoint.tensors(EMA))
    unet.eval().requires_grad_(False)
    device = pick_device()
    autocast_forward(unet, Precision(run["precision"]), device)
    autoencoder, fingerprint = load_trained_autoencoder(
        manifest.origins["autoencoder"], f"autoencoder of checkpoint={url}, which was at"
    )
    text_encoder = load_text_encoder(
        TextEncoderConfig(
            path=manifest.origins["text_encoder"], max_length=manifest.text.max_length
        )
    )
    for name, now, then in (
        ("autoencoder", fingerprint, manifest.latents.autoencoder),
        ("text_encoder", text_encoder.fingerprint, manifest.text.encoder),
    ):
        if now != then:
            raise UserError(
                f"checkpoint={url}",
                f"the {name} at {manifest.origins[name]} is not the one that made the latents",
                "put the old one back, or cache and train again",
            )
    return TrainedModel(
        unet=unet.to(device, memory_format=torch.channels_last),
        autoencoder=autoencoder.to(device),
        text_encoder=text_encoder.to(device),
        empty=torch.from_numpy(load_empty_text(data[0])).float().to(device),
        spec=manifest.latents,
        schedule=build_schedule(diffusion).to(device),
        diffusion=diffusion,
        samples_seen=checkpoint.progress.samples_seen,
        weights=checkpoint.files[EMA]["sha256"],
        latents=data,
        device=device,
    )


def datasets_of(out: Prefix, run: dict[str, Any]) -> tuple[Dataset, ...]:
    """The datasets of a run.

    Raises:
        UserError: One is no longer where it was, or no longer what it was.
    """
    then = run_config(out)["data"]
    urls = [then["url"], *then["also"]]
    datasets = tuple(open_dataset(url, "latents", "data.url of the run") for url in urls)
    for dataset, fingerprint in zip(datasets, run["data"]["fingerprints"], strict=True):
        if dataset.manifest.fingerprint != fingerprint:
            raise UserError(
                f"checkpoint={out.url}",
                f"was trained on latents that are no longer at {dataset.prefix.url}",
                "cache them again with the same settings",
            )
    return datasets
