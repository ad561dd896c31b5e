"""Samples of the raw dataset on their way to the encoders: decoded, cut to their views."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.encoding import EncodingConfig
from conf.errors import RunError
from data.collate import caption_of, image_of, meta_of
from data.image import BadImage
from data.sample import RawSample
from data.stream import Dataset
from data.views import make_view, view_names
from training.cache.plan import MOST_CAPTIONS, Sizes

ROWS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Decoded:
    """A sample that is ready to be encoded.

    Args:
        row: In its shard.
        key: Its key.
        bucket: Its bucket.
        meta: What is stored of it as JSON.
        captions: At least one.
        views: For each target its views, uint8, (H, W, 3).
        enlarged: Whether it was smaller than the largest of them.
    """

    row: int
    key: str
    bucket: int
    meta: dict[str, Any]
    captions: list[str]
    views: list[list[NDArray[np.uint8]]]
    enlarged: bool


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A sample whose image cannot be decoded, and why."""

    row: int
    key: str
    where: str
    reason: str


Found = tuple[int, list[Decoded | Undecodable]]


def read_rows(
    data: Dataset, sizes: Sequence[Sizes], config: EncodingConfig, shard: int, rows: range
) -> Found:
    """Read some rows of a shard; gives the shard's number too.

    Args:
        data: The dataset of images.
        sizes: For each target the sizes of its buckets.
        config: Which views and captions there are.
        shard: Number of the shard.
        rows: Of the shard.

    Raises:
        RunError: A caption is not there.
    """
    found: list[Decoded | Undecodable] = []
    for row in rows:
        raw = data.read(shard, row)
        try:
            image = image_of(raw)
        except BadImage as error:
            where = data.name_of(shard, row)
            found.append(Undecodable(row, raw.key, where, str(error)))
            continue
        views = [_views(image, buckets[raw.bucket], config, raw.key) for buckets in sizes]
        largest = max(buckets[raw.bucket] for buckets in sizes)
        enlarged = image.shape[0] < largest[0] or image.shape[1] < largest[1]
        captions = captions_of(raw, data, config)
        meta = {**meta_of(raw), "caption": captions[0]}
        if len(captions) > 1:
            meta["captions"] = captions
        found.append(Decoded(row, raw.key, raw.bucket, meta, captions, views, enlarged))
    return shard, found


def _views(
    image: NDArray[np.uint8], size: tuple[int, int], config: EncodingConfig, key: str
) -> list[NDArray[np.uint8]]:
    count = len(view_names(config))
    return [make_view(image, size, config, number, key) for number in range(count)]


def captions_of(raw: RawSample, data: Dataset, config: EncodingConfig) -> list[str]:
    """The captions of a raw sample: its own, or those of the fields that are named.

    Raises:
        RunError: It has none of these fields, or more captions than can be.
    """
    if not config.captions:
        return [caption_of(raw, data)]
    meta = meta_of(raw)
    found: list[str] = []
    for field in config.captions:
        value = meta.get(field)
        texts = value if isinstance(value, list) else [value]
        found += [text.strip() for text in texts if isinstance(text, str)]
    where = f"{data.prefix.url}: {raw.key}"
    if not found:
        raise RunError(f"{where}: has no text in the fields encoding.captions={config.captions}")
    if len(found) > MOST_CAPTIONS:
        raise RunError(f"{where}: has {len(found)} captions; the most is {MOST_CAPTIONS}")
    return found
