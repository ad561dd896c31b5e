"""One shard of `ldm shard`: pairs of a source, their images brought to a size and encoded."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from conf.enums import Crop, ImageFormat
from conf.schema import ShardCommand
from data.bucket import bucket_of, make_buckets
from data.image import covering, cut, encode_jpeg, encode_png, encode_webp, middle
from data.manifest import canonical_json
from data.sample import CAPTION, META, Pair, RawSample
from data.shard import ShardEntry, commit_shard
from data.sift import Skipped, sift
from data.sources import open_part
from data.storage import open_prefix

DEFAULT_QUALITY = 95
EXTENSIONS = {ImageFormat.png: "png", ImageFormat.jpeg: "jpg", ImageFormat.webp: "webp"}
# Of a photograph, for the room that a dataset takes: a 64-pixel emoji as PNG is smaller than that.
BYTES_PER_PIXEL = {ImageFormat.png: 2.0, ImageFormat.jpeg: 0.6, ImageFormat.webp: 0.6}
ENLARGED = "enlarged"


@dataclass(frozen=True, slots=True)
class ShardTask:
    """What a process needs to make one shard.

    Args:
        name: The shard's name.
        part: Its part of the source, before any sample is left out.
    """

    name: str
    part: Any


def image_members(config: ShardCommand) -> tuple[str, ...]:
    """The extensions of a sample's members."""
    return (EXTENSIONS[config.format], CAPTION, META)


def make_shard(config: ShardCommand, task: ShardTask) -> ShardEntry:
    """Make one shard, in whatever process: its bytes depend on the settings and the task alone."""
    skipped, counts = Skipped(), Counter[str]()
    buckets = make_buckets(config.size, config.buckets.step, config.buckets.max_aspect)
    pairs = sift(open_part(config.source, config.size, task.part), config, skipped)
    samples = [_sample(config, buckets, pair, counts) for pair in pairs]
    out = open_prefix(config.out, "out")
    extra = {**skipped.to_dict(), **counts}
    return commit_shard(out, task.name, samples, image_members(config), len(buckets), **extra)


def _sample(
    config: ShardCommand, buckets: tuple[tuple[int, int], ...], pair: Pair, counts: Counter[str]
) -> RawSample:
    """A pair as it is stored; counts an image that had to be enlarged."""
    height, width = pair.image.shape[:2]
    bucket = bucket_of(height, width, buckets)
    target = buckets[bucket]
    resized = covering((height, width), target)
    if resized[0] > height or resized[1] > width:
        counts[ENLARGED] += 1
    if config.crop is Crop.random:
        corner = random_corner(resized, target, config.seed, pair.key)
    else:
        corner = middle(resized, target)
    image = cut(pair.image, target, corner)
    quality = DEFAULT_QUALITY if config.quality is None else config.quality
    match config.format:
        case ImageFormat.png:
            content = encode_png(image)
        case ImageFormat.jpeg:
            content = encode_jpeg(image, quality)
        case ImageFormat.webp:
            content = encode_webp(image, quality)
    meta = {**pair.meta, "caption": pair.caption, "crop": list(corner)}
    members = {
        EXTENSIONS[config.format]: content,
        CAPTION: pair.caption.encode(),
        META: canonical_json(meta),
    }
    return RawSample(pair.key, members, bucket)


def random_corner(
    resized: tuple[int, int], target: tuple[int, int], seed: int, key: str
) -> tuple[int, int]:
    """Top and left of a target in a resized image: drawn evenly, by seed and key alone."""
    digest = hashlib.sha256(f"crop {seed} {key}".encode()).digest()
    down, right = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")
    return down % (resized[0] - target[0] + 1), right % (resized[1] - target[1] + 1)
