"""What the denoiser is fed with, and what it means: cached latents here, images in `online`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from data.spec import EMPTY_POOLED
from data.stream import Dataset
from data.tar import CorruptShard
from training.encode import Encoder, StoredText
from training.encoders import text_encoder_config
from training.meaning import Meaning, meaning_of
from training.models.text import TextEncoder, load_text_encoder
from training.numbers import as_tensor
from training.origins import check_origins, check_wanted
from training.step import Condition, Embed, condition_of_one


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
    text_encoder = _text_encoder(config, meaning, f"{data.main.prefix.setting}={config.data.url}")
    encoder = Encoder(None, text_encoder, meaning.captions)
    return Feed(
        meaning, latent_batch, lambda batch: batch, encode_empty(encoder), embed_with(encoder)
    )


def _text_encoder(config: TrainCommand, meaning: Meaning, where: str) -> TextEncoder:
    """What a dataset's ids of tokens are embedded with: as asked for, or where it was.

    Raises:
        UserError: It is not there, or another one.
    """
    models = config.text_encoder or text_encoder_config(meaning.origins["text_encoder"])
    length, padding = meaning.text.max_length, meaning.text.padding
    remedy = "put the old one back, point at it with text_encoder=..., or cache again"
    try:
        text_encoder = load_text_encoder(replace(models, max_length=length, padding=padding))
    except UserError as error:
        if config.text_encoder is not None:
            raise
        wrong = f"holds ids of tokens, whose text encoder cannot be loaded ({error.wrong})"
        raise UserError(where, f"{wrong}: {error.setting}", remedy) from error
    if text_encoder.fingerprint != meaning.text.encoder:
        wrong = "holds ids of tokens, and the text encoder is no longer the one that they are of"
        raise UserError(where, wrong, remedy)
    return text_encoder


def encode_captions(text_encoder: TextEncoder, captions: list[str]) -> Condition:
    """The condition of captions, on the text encoder's device."""
    encoding = text_encoder.encode(captions)
    return Condition(encoding.embeddings, encoding.mask, encoding.pooled)


def embed_with(encoder: Encoder) -> Embed:
    """Conditions of batches that hold ids of tokens: the numbers that a cache would hold."""

    def embed(batch: LatentBatch) -> Condition:
        lengths = batch.text_mask.sum(1)
        ids = [row[:length].T for row, length in zip(batch.text, lengths, strict=True)]
        texts = encoder.texts_of_any_length(ids)
        tokens, mask = side_by_side([one.tokens for one in texts])
        pooled = pooled_of(texts)
        return Condition(
            as_tensor(tokens).float(),
            torch.from_numpy(mask),
            None if pooled is None else as_tensor(pooled).float(),
        )

    return embed


def encode_empty(encoder: Encoder) -> Condition:
    """The condition of the empty caption, in the numbers that a cache would hold."""
    stored = encoder.captions([""])[0]
    pooled = None if stored.pooled is None else as_tensor(stored.pooled).float()
    return condition_of_one(as_tensor(stored.tokens).float(), pooled)


def side_by_side(texts: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Arrays (L_i, D) as one of (B, L, D), zero after each one's end, and a mask (B, L)."""
    lengths = np.array([len(one) for one in texts])
    joined = np.zeros((len(texts), lengths.max(), *texts[0].shape[1:]), texts[0].dtype)
    for row, one in zip(joined, texts, strict=True):
        row[: len(one)] = one
    return joined, np.arange(lengths.max()) < lengths[:, None]


def pooled_of(texts: Sequence[StoredText]) -> NDArray[Any] | None:
    """The vectors of captions, (B, P), if they have any."""
    vectors = [one.pooled for one in texts if one.pooled is not None]
    return np.stack(vectors) if vectors else None


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
