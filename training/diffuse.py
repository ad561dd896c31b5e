"""`ldm train`: trains the denoiser on a dataset of latents, and loads what it has trained."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from conf.diffusion import DiffusionConfig
from conf.encoders import AutoencoderConfig, TextEncoderConfig
from conf.enums import Precision
from conf.errors import UserError
from conf.groups import UNetConfig
from conf.schema import TrainCommand
from data.corpus import Corpus, open_corpus
from data.manifest import load_manifest
from data.spec import LatentSpec
from data.storage import Prefix, open_prefix
from data.stream import Dataset, open_dataset
from training.averages import kind_of
from training.device import autocast_forward, pick_device
from training.diffusion.schedule import Schedule, build_schedule
from training.encoders import (
    AnyAutoencoder,
    autoencoder_config,
    load_autoencoder,
    text_encoder_config,
)
from training.engine.checkpoint import digest_of, require_checkpoint
from training.engine.pieces import EMA
from training.engine.world import current_world
from training.feed import Feed, cached_feed, encode_captions, load_empty
from training.grids import grid_watch
from training.meaning import MEANING, Meaning, kept_meaning, meaning_json, meaning_of
from training.models.text import TextEncoder, load_text_encoder
from training.models.unet import UNet
from training.online import online_feed
from training.rebuild import rebuilt_average
from training.run import read_run, run_config
from training.start_from import start_from
from training.step import latent_losses
from training.task import Task
from training.train import train
from training.trained import Painter, TrainedModel
from training.validate import validation_watch
from training.watch import Watch


def train_denoiser(config: TrainCommand) -> None:
    """Train the UNet of a configuration; channels and widths come from what it is fed with."""
    kind = load_manifest(open_prefix(config.data.url, "data.url"), "any").kind
    data = open_corpus(config.data, kind, config.batch_size, current_world().size)
    feed = cached_feed(config, data) if kind == "latents" else online_feed(config, data)
    spec = feed.meaning.latents
    torch.manual_seed(config.train.seed)
    check_halvings(config.unet, spec, data.buckets)
    model = build_unet(config.unet, feed.meaning, config.diffusion.learned_variance)
    start = {} if config.start_from is None else start_from(model, config.start_from, config.out)

    def losses(wrapped: nn.Module, batch: Any, device: torch.device) -> Mapping[str, Tensor]:
        return latent_losses(
            wrapped,
            feed.encode(batch),
            config.diffusion,
            schedule.to(device),
            spec,
            feed.empty.to(device),
            config.train.seed,
            config.batch_size,
            feed.embed,
        )

    schedule = build_schedule(config.diffusion)
    watches = tuple(_watches(config, data, feed, schedule, model))
    # What encoded the latents, and what the run starts with, are known by their fingerprints.
    free: tuple[str, ...] = ("autoencoder", "text_encoder", "start_from")
    files = {MEANING: meaning_json(feed.meaning)}
    if kind == "latents":  # which say all that themselves
        free, files = (*free, "encoding"), {}
    identity = {**feed.identity, **start}
    task = Task("train", model, data, feed.collate, losses, identity, free, files, watches)
    train(config, task)


def _watches(
    config: TrainCommand, data: Corpus, feed: Feed, schedule: Schedule, model: UNet
) -> Iterator[Watch]:
    """What `validation` asks for; all that it needs is loaded and checked here.

    Raises:
        UserError: Something is missing, or does not go with what is trained on.
    """
    if config.validation.url is not None:
        yield validation_watch(config, data, feed, schedule)
    if config.validation.prompts:
        device = pick_device()
        encoders = load_encoders(
            feed.meaning, config.autoencoder, config.text_encoder, "validation.prompts", device
        )
        encoders[1].tokenize(config.validation.prompts)  # which refuses what is no class
        empty, there = feed.empty.to(device), schedule.to(device)
        spec = feed.meaning.latents
        yield grid_watch(
            config.validation,
            Painter(model, *encoders, empty, spec, there, config.diffusion, device),
        )


def build_unet(config: UNetConfig, meaning: Meaning, learned_variance: bool = False) -> UNet:
    """A fresh UNet with the channels and widths of what it is fed with.

    Args:
        config: Its sizes.
        meaning: What it is fed with.
        learned_variance: Whether it says variances too, in as many channels again.

    Raises:
        UserError: Sizes that cannot work.
    """
    latents, text = meaning.latents, meaning.text
    try:
        out_channels = (1 + learned_variance) * latents.channels
        return UNet(
            config, latents.channels, text.width, text.pooled_width, out_channels, text.classes
        )
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


def load_encoders(
    meaning: Meaning,
    autoencoder_at: AutoencoderConfig | None,
    text_encoder_at: TextEncoderConfig | None,
    where: str,
    device: torch.device,
) -> tuple[AnyAutoencoder, TextEncoder]:
    """The autoencoder and the text encoder that latents and captions came from, on a device.

    Args:
        meaning: What they mean, and where the two were.
        autoencoder_at: Where the autoencoder is; None is where it was.
        text_encoder_at: The same for the text encoder.
        where: The setting that needs them, for messages.
        device: Where they are to compute.

    Raises:
        UserError: One is not there, or no longer what it was.
    """
    for name, at in (("autoencoder", autoencoder_at), ("text_encoder", text_encoder_at)):
        if at is None and name not in meaning.origins:
            wrong = f"needs the {name} of the latents, which do not say where it was"
            raise UserError(where, wrong, f"point at it with {name}=...")
    autoencoder = load_autoencoder(
        autoencoder_at or autoencoder_config(meaning.origins["autoencoder"])
    )
    texts = text_encoder_at or text_encoder_config(meaning.origins["text_encoder"])
    length, padding = meaning.text.max_length, meaning.text.padding
    text_encoder = load_text_encoder(replace(texts, max_length=length, padding=padding))
    text_encoder.to(device)
    for name, now, then in (
        ("autoencoder", autoencoder.fingerprint, meaning.latents.autoencoder),
        ("text_encoder", text_encoder.fingerprint, meaning.text.encoder),
    ):
        if now != then:
            raise UserError(
                where,
                f"the {name} that was found is not the one that made its latents",
                f"put the old one back, point at it with {name}=..., or cache and train again",
            )
    return autoencoder.model.to(device), text_encoder


def load_trained(
    url: str,
    autoencoder_at: AutoencoderConfig | None = None,
    text_encoder_at: TextEncoderConfig | None = None,
    ema_length: float | None = None,
) -> TrainedModel:
    """Load an `ldm train` run with the autoencoder and text encoder that its latents came from.

    Args:
        url: The run.
        autoencoder_at: Where the autoencoder is; None is where it was.
        text_encoder_at: The same for the text encoder.
        ema_length: Of an average that is rebuilt; None is the run's own.

    Raises:
        UserError: There is no such run, the average cannot be rebuilt, or one of the two is no
            longer what it was.
    """
    out = open_prefix(url, "checkpoint")
    run = read_run(out, "train")
    lengths = run["train"]["ema_lengths"]
    kinds = [kind_of(length) for length in lengths] if ema_length else [EMA]
    checkpoint = require_checkpoint(out, kinds)
    diffusion = OmegaConf.to_object(OmegaConf.merge(DiffusionConfig, run["diffusion"]))
    assert isinstance(diffusion, DiffusionConfig)
    data = datasets_of(out, run)
    meaning = kept_meaning(out) if "latents" in run else meaning_of(data[0])
    unet = build_unet(UNetConfig(**run["unet"]), meaning, diffusion.learned_variance)
    averages = (
        rebuilt_average(out, checkpoint, lengths, ema_length)
        if ema_length
        else checkpoint.averages()
    )
    unet.load_state_dict(averages)
    unet.eval().requires_grad_(False)
    device = pick_device()
    autocast_forward(unet, Precision(run["precision"]), device)
    where = f"checkpoint={url}"
    encoders = load_encoders(meaning, autoencoder_at, text_encoder_at, where, device)
    autoencoder, text_encoder = encoders
    stored = meaning.text.stored == "embeddings" and "latents" not in run
    empty = load_empty(data[0]) if stored else encode_captions(text_encoder, [""])
    return TrainedModel(
        unet=unet.to(device, memory_format=torch.channels_last),
        autoencoder=autoencoder,
        text_encoder=text_encoder,
        empty=empty.to(device),
        spec=meaning.latents,
        schedule=build_schedule(diffusion).to(device),
        diffusion=diffusion,
        samples_seen=checkpoint.progress.samples_seen,
        weights=digest_of(averages),
        datasets=data,
        device=device,
    )


def datasets_of(out: Prefix, run: dict[str, Any]) -> tuple[Dataset, ...]:
    """The datasets of a run.

    Raises:
        UserError: One is no longer where it was, or no longer what it was.
    """
    then = run_config(out)["data"]
    urls = [then["url"], *then["also"]]
    datasets = tuple(open_dataset(url, "any", "data.url of the run") for url in urls)
    for dataset, fingerprint in zip(datasets, run["data"]["fingerprints"], strict=True):
        if dataset.manifest.fingerprint != fingerprint:
            raise UserError(
                f"checkpoint={out.url}",
                f"was trained on data that is no longer at {dataset.prefix.url}",
                "make it again with the same settings",
            )
    return datasets
