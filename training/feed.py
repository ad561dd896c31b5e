"""What the denoiser is fed with, and what it means: cached latents here, images in `online`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from conf.errors import UserError
from conf.schema import TrainCommand
from data.arrays import load_array
from data.collate import latent_batch
from data.corpus import Corpus
from data.manifest import sha256
from data.sample import LatentBatch
from data.spec import EMPTY_POOLED, LatentSpec, TextSpec
from data.stream import Dataset
from data.tar import CorruptShard
from training.device import pick_device
from training.encoders import text_encoder_config
from training.models.text import TextEncoder, load_text_encoder
from training.numbers import as_tensor
from training.origins import check_origins, check_wanted
from training.step import Condition, Embed, condition_of_one


@dataclass(frozen=True, slots=True)
class Meaning:
    """What latents and captions mean, and where what made them was found.

    Args:
        latents: What the latents mean.
        text: What the captions mean.
        origins: `autoencoder` and `text_encoder` as the settings that lead to them.
    """

    latents: LatentSpec
    text: TextSpec
    origins: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Feed:
    """Micro-batches for the denoiser.

    Args:
        meaning: What they mean.
        collate: Reads the samples at some places.
        encode: Makes latents of what was read.
        empty: The condition of the empty caption.
        embed: Makes conditions of batches that hold ids of tokens; None if they hold embeddings.
        identity: What decides them besides settings and data, JSON-ready.
    """

    meaning: Meaning
    collate: Callable[[Corpus, range], Any]
    encode: Callable[[Any], LatentBatch]
    empty: Condition
    embed: Embed | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)


def cached_feed(config: TrainCommand, data: Corpus) -> Feed:
    """Latents as `ldm cache` has stored them.

    Raises:
        UserError: They are not what is asked for, incomplete, or no longer what their origins make.
    """
    for dataset in data.datasets:
        _check_complete(config, dataset)
        check_wanted(config, dataset)
        if config.data.check_origins:
            check_origins(dataset)
    meaning = meaning_of(data.main)
    if meaning.text.stored == "embeddings":
        return Feed(meaning, latent_batch, lambda batch: batch, load_empty(data.main))
    text_encoder = load_text_encoder(text_encoder_config(meaning.origins["text_encoder"]))
    check_text_encoder(text_encoder, meaning.text, f"data.url={config.data.url}")
    text_encoder.to(pick_device())
    empty = encode_captions(text_encoder, [""])
    return Feed(meaning, latent_batch, lambda batch: batch, empty, embed_with(text_encoder))


def meaning_of(dataset: Dataset) -> Meaning:
    """What a dataset of latents means."""
    manifest = dataset.manifest
    assert manifest.latents is not None and manifest.text is not None
    return Meaning(manifest.latents, manifest.text, manifest.origins)


def check_text_encoder(text_encoder: TextEncoder, spec: TextSpec, where: str) -> None:
    """Refuse a text encoder that is not the one that a dataset's ids or embeddings are of.

    Raises:
        UserError: It is another one.
    """
    if text_encoder.fingerprint != spec.encoder:
        raise UserError(
            where,
            "the text encoder of its captions is no longer what it was",
            "put the old one back, or cache and train again",
        )


def encode_captions(text_encoder: TextEncoder, captions: list[str]) -> Condition:
    """The condition of captions, on the text encoder's device."""
    encoding = text_encoder.encode(captions)
    return Condition(encoding.embeddings, encoding.mask, encoding.pooled)


def embed_with(text_encoder: TextEncoder) -> Embed:
    """Conditions of batches that hold ids of tokens."""

    def embed(batch: LatentBatch) -> Condition:
        lengths = batch.text_mask.sum(1)
        ids = [row[:length].T for row, length in zip(batch.text, lengths, strict=True)]
        with torch.no_grad():
            encoding = text_encoder.embed(ids)
        return Condition(encoding.embeddings, encoding.mask, encoding.pooled)

    return embed


def load_empty(data: Dataset) -> Condition:
    """The condition of the empty caption, as the manifest pins it.

    Raises:
        CorruptShard: It is not what the manifest says.
    """
    spec = data.manifest.text
    assert spec is not None
    text = _pinned(data, spec.empty, spec.empty_sha256)
    pooled = None
    if spec.pooled_members:
        pooled = _pinned(data, EMPTY_POOLED, spec.empty_pooled_sha256)
    tensors = (None if one is None else as_tensor(one).float() for one in (text, pooled))
    return condition_of_one(*tensors)


def _pinned(data: Dataset, name: str, pinned: str) -> NDArray[np.generic]:
    where = f"{data.prefix.url}/{name}"
    try:
        content = data.prefix.read(name)
    except FileNotFoundError:
        raise CorruptShard(f"{where}: is missing; cache again") from None
    if sha256(content) != pinned:
        raise CorruptShard(f"{where}: is not what the manifest pins; cache again")
    return load_array(content)


def _check_complete(config: TrainCommand, dataset: Dataset) -> None:
    spec = dataset.manifest.latents
    if spec is not None and spec.skipped and not config.data.incomplete:
        raise UserError(
            f"{dataset.prefix.setting}={dataset.prefix.url}",
            f"lacks {spec.skipped:,} samples, whose images could not be decoded (skipped.json)",
            "mend them and cache again, or train without them: data.incomplete=true",
        )
