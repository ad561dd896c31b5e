"""Small datasets and folders of images. What they hold depends on the arguments alone."""

import io
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conf.compose import compose_config
from conf.groups import SourceConfig
from data.arrays import dump_array
from data.image import encode_png
from data.ingest import make_dataset
from data.manifest import EMPTY_TEXT, Manifest, sha256
from data.sample import CAPTION, META, MOMENTS, TEXT, RawSample
from data.shard import begin_dataset, commit_dataset, commit_shard
from data.sources import build_source, open_part
from data.spec import LatentSpec, TextSpec
from data.storage import open_prefix

IMAGE_MEMBERS = ("png", CAPTION, META)
LATENT_MEMBERS = (MOMENTS, TEXT, META)
CHANNELS, LATENT_SIZE, TEXT_WIDTH = 2, 4, 3


# Of datasets with images of several sizes; latents have an eighth of it.
BUCKETS = ((16, 16), (8, 24), (24, 8))


def tiny_image(number: int, height: int = 8, width: int | None = None) -> NDArray[np.uint8]:
    """Random pixels, (height, width, 3); square unless told otherwise."""
    shape = (height, width or height, 3)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def tiny_images(folder: Path, count: int, size: int = 8) -> None:
    """Writes `000.png` and so on, each with its caption beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i:03d}.png").write_bytes(encode_png(tiny_image(i, size)))
        (folder / f"{i:03d}.txt").write_text(f"caption {i}\n")


def raw_samples(count: int, first: int = 0) -> list[RawSample]:
    """Samples of raw shards, `s0` and so on."""
    return [_raw_sample(i) for i in range(first, first + count)]


def latent_samples(count: int, first: int = 0) -> list[RawSample]:
    """Samples of latent shards, `s0` and so on, with texts of different lengths."""
    return [_latent_sample(i) for i in range(first, first + count)]


def write_dataset(
    url: str,
    shards: Iterable[list[RawSample]],
    members: tuple[str, ...],
    buckets: tuple[tuple[int, int], ...] | None = None,
    **specs: Any,
) -> Manifest:
    """Writes samples, shard by shard, as the commands do."""
    out, kind = open_prefix(url, "out"), "latents" if MOMENTS in members else "images"
    buckets = buckets or ((8 * LATENT_SIZE,) * 2 if kind == "latents" else (8, 8),)
    begin_dataset(out, {"kind": kind})
    entries = [
        commit_shard(out, f"{i:05d}", shard, members, len(buckets))
        for i, shard in enumerate(shards)
    ]
    manifest = Manifest(
        kind=kind,
        buckets=buckets,
        members=members,
        shards=tuple(entry.shard for entry in entries),
        identity="of a test",
        settings={"kind": kind},
        **specs,
    )
    commit_dataset(out, manifest)
    return manifest


def write_images(url: str, *counts: int) -> Manifest:
    """Writes a raw dataset of as many samples a shard as told."""
    return write_dataset(url, _cut(raw_samples(sum(counts)), counts), IMAGE_MEMBERS)


def write_bucketed(url: str, *shards: str) -> Manifest:
    """Writes images of `BUCKETS`: for each shard a digit a sample, the number of its bucket."""
    numbers = iter(range(sum(map(len, shards))))
    samples = [[_raw_sample(next(numbers), int(bucket)) for bucket in shard] for shard in shards]
    return write_dataset(url, samples, IMAGE_MEMBERS, BUCKETS)


def write_latents(url: str, *counts: int) -> Manifest:
    """Writes a latent dataset of as many samples a shard as told."""
    return write_latent_shards(url, _cut(latent_samples(sum(counts)), counts))


def write_latent_shards(url: str, shards: Iterable[list[RawSample]]) -> Manifest:
    """Writes samples of latents, with what they mean."""
    empty = dump_array(np.ones((2, TEXT_WIDTH), dtype=np.float16))
    zeros, ones = (0.0,) * CHANNELS, (1.0,) * CHANNELS
    latents = LatentSpec(CHANNELS, LATENT_SIZE, 8, "float16", "none", zeros, ones, zeros, ones)
    text = TextSpec("none", TEXT_WIDTH, 77, "float16", sha256(empty))
    manifest = write_dataset(url, shards, LATENT_MEMBERS, latents=latents, text=text)
    open_prefix(url, "out").write(EMPTY_TEXT, empty)
    return manifest


def run_shard(out: Path | str, *overrides: str) -> Manifest:
    """`ldm shard` in this process; images of 16 pixels, four a shard unless told otherwise."""
    usual = {"size": "16", "shard_samples": "4", "processes": "1"}
    told = dict(override.split("=", 1) for override in overrides)
    settings = {**usual, **told, "out": str(out)}
    return make_dataset(compose_config("shard", [f"{k}={v}" for k, v in settings.items()]))


def whole_source(config: SourceConfig, size: int = 16) -> Any:
    """A source with the `keys` of all its pairs and `pair`, as another process sees them."""
    source = build_source(config)
    part = open_part(config, size, pickle.loads(pickle.dumps(source.part(0, source.samples))))
    return SimpleNamespace(settings=source.settings, keys=part.keys, pair=part.pair)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file in a folder and below it, by name."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("it was unpickled",))


def pickled_array() -> bytes:
    """An .npy file that holds a pickle; whoever unpickles it fails the test."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([_Trap()], dtype=object))
    return buffer.getvalue()


def flip_bit(content: bytes, bit: int) -> bytes:
    """`content` with one bit the other way round."""
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def _raw_sample(number: int, bucket: int | None = None) -> RawSample:
    caption = f"caption {number}"
    image = tiny_image(number) if bucket is None else tiny_image(number, *BUCKETS[bucket])
    members = {
        "png": encode_png(image),
        CAPTION: caption.encode(),
        META: json.dumps({"caption": caption, "number": number}).encode(),
    }
    return RawSample(f"s{number}", members, bucket or 0)


def _latent_sample(number: int) -> RawSample:
    chance = np.random.default_rng(number)
    moments = chance.standard_normal((2 * CHANNELS, LATENT_SIZE, LATENT_SIZE))
    text = chance.standard_normal((1 + number % 4, TEXT_WIDTH))
    members = {
        MOMENTS: dump_array(moments.astype(np.float16)),
        TEXT: dump_array(text.astype(np.float16)),
        META: json.dumps({"number": number}).encode(),
    }
    return RawSample(f"s{number}", members)


def _cut(samples: list[RawSample], counts: tuple[int, ...]) -> Iterable[list[RawSample]]:
    ends = np.cumsum(counts)
    return [samples[end - count : end] for end, count in zip(ends, counts, strict=True)]
