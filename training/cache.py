"""`ldm cache`: raw shards to latent shards, one for one."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from conf.encoders import TrainedAutoencoderConfig
from conf.errors import RunError
from conf.schema import CacheCommand
from data.arrays import dump_array
from data.collate import caption_of, image_of
from data.image import BadImage, fit
from data.loader import read_ahead
from data.manifest import (
    EMPTY_TEXT,
    LatentSpec,
    Manifest,
    TextSpec,
    canonical_json,
    sha256,
    square_side,
)
from data.progress import Meter, peak_memory, progress, write_summary
from data.sample import META, MOMENTS, TEXT, RawSample
from data.say import say
from data.shard import ShardEntry, begin_dataset, commit_dataset, commit_shard, finished_shard
from data.storage import open_prefix
from data.stream import Dataset, open_dataset
from training.autoencode import check_size, load_trained_autoencoder, to_images
from training.device import pick_device
from training.models.autoencoder import KLAutoencoder, split_moments
from training.models.text import TextEncoder, absolute_path, load_text_encoder

# Raised when the same inputs would give other numbers: it is part of every cache's identity.
CACHE_VERSION = 1
MEMBERS = (MOMENTS, TEXT, META)
OPEN_SHARDS = 2  # they are read one after another


class Encoder:
    """Images and captions to moments and text embeddings.

    Args:
        autoencoder: Trained, in evaluation mode.
        text_encoder: Loaded.
        dtype: Number format of what comes out.
    """

    def __init__(self, autoencoder: KLAutoencoder, text_encoder: TextEncoder, dtype: str) -> None:
        self.device = pick_device()
        self.autoencoder = autoencoder.to(self.device)
        self.text_encoder = text_encoder.to(self.device)
        self.dtype = np.dtype(dtype)
        self.truncated = 0

    @torch.inference_mode()
    def moments(self, images: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
        """Raw moments (B, 2C, h, w) of images (B, H, W, 3), computed in float32.

        Raises:
            RunError: They are not finite in the number format asked for.
        """
        moments = self.autoencoder.encode(to_images(images, self.device))
        return self._stored(moments, "autoencoder's moments")

    def texts(self, captions: list[str]) -> list[NDArray[np.floating[Any]]]:
        """Embeddings (L, D) of each caption's real tokens."""
        encoding = self.text_encoder.encode(captions)
        self.truncated += encoding.truncated
        lengths = encoding.mask.sum(1).tolist()
        embeddings = self._stored(encoding.embeddings, "text encoder's embeddings")
        return [row[:length] for row, length in zip(embeddings, lengths, strict=True)]

    def _stored(self, values: torch.Tensor, what: str) -> NDArray[np.floating[Any]]:
        """In the number format of the cache; refuses numbers that it cannot hold."""
        with np.errstate(over="ignore"):
            stored = values.contiguous().cpu().numpy().astype(self.dtype)
        if not np.isfinite(stored).all():
            raise RunError(f"the {what} overflow {self.dtype}: cache with dtype=float32")
        return stored


def make_cache(config: CacheCommand) -> Manifest:
    """Encode a dataset of images, shard by shard; what is there already is kept.

    Raises:
        UserError: A setting does not fit, or `out` holds another cache.
        RunError: The encoder gives numbers that are not finite.
    """
    started = time.perf_counter()
    memory = int(config.data.memory_gb * 1e9)
    data = open_dataset(config.data.url, "images", open_shards=OPEN_SHARDS, memory=memory)
    out = open_prefix(config.out, "out")
    assert isinstance(config.autoencoder, TrainedAutoencoderConfig)
    autoencoder, fingerprint = load_trained_autoencoder(config.autoencoder.url, "autoencoder.url")
    check_size(autoencoder, data.manifest.buckets, config.data.url)
    encoder = Encoder(autoencoder, load_text_encoder(config.text_encoder), config.dtype.value)
    settings = {
        "kind": "latents",
        "version": CACHE_VERSION,
        "images": data.manifest.fingerprint,
        "autoencoder": fingerprint,
        "text_encoder": encoder.text_encoder.fingerprint,
        "max_length": config.text_encoder.max_length,
        "dtype": config.dtype.value,
    }
    done = begin_dataset(out, settings, data.manifest.samples * _bytes_of_sample(encoder, data))
    if done:
        say(f"cache: {out.url} is finished ({done.samples:,} latents), nothing to do")
        return done
    entries, encoded = _encode_shards(config, data, encoder)
    empty = dump_array(encoder.texts([""])[0])
    out.write(EMPTY_TEXT, empty)
    manifest = Manifest(
        kind="latents",
        buckets=data.manifest.buckets,
        members=MEMBERS,
        shards=tuple(entry.shard for entry in entries),
        identity=sha256(canonical_json(settings)),
        settings=settings,
        parent=data.manifest.fingerprint,
        latents=_latent_spec(entries, settings, autoencoder, data),
        text=_text_spec(settings, encoder.text_encoder, empty),
        origins={
            "images": data.prefix.absolute,
            "autoencoder": open_prefix(config.autoencoder.url, "autoencoder.url").absolute,
            "text_encoder": absolute_path(config.text_encoder.path),
        },
    )
    commit_dataset(out, manifest)
    truncated = sum(entry.extra["truncated"] for entry in entries)
    if truncated:
        say(f"cache: {truncated:,} captions were cut to {config.text_encoder.max_length} tokens")
    seconds = time.perf_counter() - started
    write_summary(out, "cache", encoded, seconds, peak_memory(), truncated=truncated)
    return manifest


def _bytes_of_sample(encoder: Encoder, data: Dataset) -> int:
    """The most that a sample takes: its caption as long as it may be, and 2 kB of headers."""
    pixels = max(height * width for height, width in data.manifest.buckets)
    pixels_of_one = encoder.autoencoder.downsampling**2
    moments = encoder.autoencoder.quant_conv.out_channels * pixels // pixels_of_one
    text = encoder.text_encoder.max_length * encoder.text_encoder.width
    return (moments + text) * encoder.dtype.itemsize + 2048


def _encode_shards(
    config: CacheCommand, data: Dataset, encoder: Encoder
) -> tuple[list[ShardEntry], int]:
    """All shards' entries, in order, and how many samples were encoded now."""
    out = open_prefix(config.out, "out")
    entries, encoded = [], 0
    with progress("cache", data.manifest.samples) as meter:
        for number, shard in enumerate(data.manifest.shards):
            entry = finished_shard(out, shard.name)
            if entry is None:
                entry = _encode_shard(config, data, encoder, number, meter)
                encoded += shard.samples
            else:
                meter.advance(shard.samples)
            entries.append(entry)
    return entries, encoded


def _encode_shard(
    config: CacheCommand, data: Dataset, encoder: Encoder, number: int, meter: Meter
) -> ShardEntry:
    """Encode one shard while the next samples are read and decoded."""
    truncated_before = encoder.truncated
    statistics = ChannelStatistics(encoder.autoencoder.post_quant_conv.in_channels)
    shard = data.manifest.shards[number]

    def samples() -> Iterator[RawSample]:
        jobs = (
            lambda rows=rows: _read(data, number, rows)
            for rows in _micro_batches(data.index(number)["bucket"], config.micro_batch_size)
        )
        for raw, images in read_ahead(jobs, config.data.threads):
            moments = encoder.moments(images)
            statistics.add(moments)
            texts = encoder.texts([caption_of(sample, data) for sample in raw])
            for sample, moment, text in zip(raw, moments, texts, strict=True):
                members = {MOMENTS: dump_array(moment), TEXT: dump_array(text)}
                yield replace(sample, members={**members, **_meta(sample)})
            meter.advance(len(raw))

    encoded = list(samples())
    return commit_shard(
        open_prefix(config.out, "out"),
        shard.name,
        encoded,
        MEMBERS,
        len(data.manifest.buckets),
        **statistics.to_json(),
        truncated=encoder.truncated - truncated_before,
    )


def _micro_batches(buckets: NDArray[np.uint16], most: int) -> list[list[int]]:
    """The rows of a shard, bucket by bucket, so that images encoded at once have one size."""
    parts = [np.flatnonzero(buckets == bucket).tolist() for bucket in np.unique(buckets)]
    return [rows[i : i + most] for rows in parts for i in range(0, len(rows), most)]


def _read(data: Dataset, shard: int, rows: list[int]) -> tuple[list[RawSample], NDArray[np.uint8]]:
    """Samples of one bucket, and their images in its size, (B, H, W, 3)."""
    raw = [data.read(shard, row) for row in rows]
    height, width = data.manifest.buckets[raw[0].bucket]
    images = []
    for sample, row in zip(raw, rows, strict=True):
        try:
            images.append(fit(image_of(sample), height, width))
        except BadImage as error:
            where = data.name_of(shard, row)
            raise RunError(
                f"{where}: {error}; leave it out with `ldm shard` source.check=true"
            ) from error
    return raw, np.stack(images)


def _meta(sample: RawSample) -> dict[str, bytes]:
    return {META: sample.members[META]} if META in sample.members else {}


class ChannelStatistics:
    """Sums that give each channel's mean and standard deviation of the latents that will be drawn.

    The variance of a draw is that of the means plus the mean of the variances.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.total = np.zeros(channels)
        self.squares = np.zeros(channels)

    def add(self, moments: NDArray[np.floating[Any]]) -> None:
        """Count moments (B, 2C, H, W)."""
        mean, log_variance = split_moments(torch.from_numpy(moments.astype(np.float64)))
        self.count += mean.shape[0] * mean.shape[2] * mean.shape[3]
        self.total += mean.sum((0, 2, 3)).numpy()
        self.squares += (mean.square() + log_variance.exp()).sum((0, 2, 3)).numpy()

    def to_json(self) -> dict[str, Any]:
        """The sums, to be kept with a shard."""
        return {"count": self.count, "total": self.total.tolist(), "squares": self.squares.tolist()}


def _latent_spec(
    entries: list[ShardEntry], settings: dict[str, Any], autoencoder: KLAutoencoder, data: Dataset
) -> LatentSpec:
    """What the latents mean, from the shards' statistics: scaled to zero mean and unit variance."""
    count = sum(entry.extra["count"] for entry in entries)
    mean = np.sum([entry.extra["total"] for entry in entries], axis=0) / count
    squares = np.sum([entry.extra["squares"] for entry in entries], axis=0) / count
    std = np.sqrt(squares - mean**2)
    return LatentSpec(
        channels=len(mean),
        size=square_side(data.manifest.buckets) // autoencoder.downsampling,
        downsampling=autoencoder.downsampling,
        dtype=settings["dtype"],
        autoencoder=settings["autoencoder"],
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        shift=tuple(mean.tolist()),
        scale=tuple((1 / std).tolist()),
    )


def _text_spec(settings: dict[str, Any], text_encoder: TextEncoder, empty: bytes) -> TextSpec:
    """What the text embeddings mean, and which one is the empty caption's."""
    return TextSpec(
        encoder=settings["text_encoder"],
        width=text_encoder.width,
        max_length=settings["max_length"],
        dtype=settings["dtype"],
        empty_sha256=sha256(empty),
    )
