"""Datasets of small random images for the cache stage, which depend on the arguments alone."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.image import encode_png
from data.manifest import Manifest
from data.sample import CAPTION, META, RawSample
from tests.helpers.datasets import IMAGE_MEMBERS, tiny_image, write_dataset

SIDE = 16


def sample_of(number: int, **changes: Any) -> RawSample:
    """A sample whose image, caption and JSON are its number's, or as told.

    Args:
        number: Of the sample.
        changes: `png`, `txt` or `json` as bytes, `bucket`, or `size` of the image.
    """
    image = tiny_image(number, *changes.get("size", (SIDE, SIDE)))
    members = {
        "png": encode_png(image),
        CAPTION: f"caption {number}".encode(),
        META: json.dumps({"number": number, "original_size": list(image.shape[:2])}).encode(),
    }
    members |= {name: changes[name] for name in members.keys() & changes.keys()}
    return RawSample(f"s{number:04d}", members, changes.get("bucket", 0))


def write_raw(
    url: Path | str,
    shards: Sequence[int],
    change: Callable[[int], dict[str, Any]] = lambda number: {},
    buckets: tuple[tuple[int, int], ...] = ((SIDE, SIDE),),
) -> Manifest:
    """A dataset of so many images a shard; `change` says what is other of a sample."""
    numbers = iter(range(sum(shards)))
    cut = [[next(numbers) for _ in range(count)] for count in shards]
    samples = [[sample_of(number, **change(number)) for number in part] for part in cut]
    return write_dataset(str(url), samples, IMAGE_MEMBERS, buckets)
