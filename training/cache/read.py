"""Samples of the raw dataset on their way to the encoders: decoded, cut to their views."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.encoding import EncodingConfig
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


class NoCaption(Exception):
    """A sample without a caption, with the reason."""


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A sample that cannot be encoded, because of its image or for want of a caption, and why."""

    row: int
    key: str
    kind: str
    where: str
    reason: str

    def record(self) -> dict[str, str]:
        """Its line in the ledger."""
        return {"key": self.key, "kind": self.kind, "what": f"{self.where}: {self.reason}"}


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
        CorruptShard: Bytes are not those that were indexed.
    """
    found: list[Decoded | Undecodable] = []
    for row in rows:
        raw = data.read(shard, row)
        try:
            image = image_of(raw)
            captions = captions_of(raw, data, config)
        except (BadImage, NoCaption) as error:
            kind = "image" if isinstance(error, BadImage) else "caption"
            found.append(Undecodable(row, raw.key, kind, data.name_of(shard, row), str(error)))
            continue
        views = [_views(image, buckets[raw.bucket], config, raw.key) for buckets in sizes]
        largest = max(buckets[raw.bucket] for buckets in sizes)
        enlarged = image.shape[0] < largest[0] or image.shape[1] < largest[1]
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
    """The captions of a raw sample: its own, or the first of those of the fields that are named.

    Raises:
        NoCaption: It has none of these fields.
    """
    if not config.captions:
        return [_clean(caption_of(raw, data))]
    meta = meta_of(raw)
    found: list[str] = []
    for field in config.captions:
        value = meta.get(field)
        texts = value if isinstance(value, list) else [value]
        found += [_clean(text.strip()) for text in texts if isinstance(text, str)]
    if not found:
        raise NoCaption(f"has no text in the fields encoding.captions={config.captions}")
    return found[:MOST_CAPTIONS]


def _clean(caption: str) -> str:
    """JSON may hold halves of characters, which are no text that could be stored or encoded."""
    return caption.encode(errors="replace").decode()
