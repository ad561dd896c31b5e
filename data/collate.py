"""Samples to micro-batches: decoded images, or latents in one block of memory."""

import json
import threading

import numpy as np
from numpy.typing import NDArray

from conf.errors import RunError, UserError
from data.arrays import pad_arrays, stack_arrays
from data.corpus import Corpus, Sample
from data.image import BadImage, decode_image, fit
from data.sample import (
    CAPTION,
    IMAGE_EXTENSIONS,
    META,
    MOMENTS,
    TEXT,
    ImageBatch,
    LatentBatch,
    RawSample,
    caption_text,
)
from data.say import one_line, say
from data.stream import Dataset
from data.tar import Column, CorruptShard

# The share of bad images is judged over at least so many, or the first bad one would be too many.
FEWEST_JUDGED = 1000


def latent_batch(corpus: Corpus, places: range) -> LatentBatch:
    """The latents at some places of the order.

    Raises:
        CorruptShard: One is damaged, or is no array as the cache stage writes it.
    """

    def collate(columns: list[Column]) -> LatentBatch:
        moments, texts = columns
        text, mask = pad_arrays(texts)
        numbers = np.arange(places.start, places.stop)
        return LatentBatch(numbers, stack_arrays(moments), text, mask)

    return corpus.checked(places, (MOMENTS, TEXT), collate)


class ImageCollator:
    """Makes micro-batches of images; one that cannot be decoded gives its place to another.

    Which one is a function of the dataset alone: the next of the same shard and bucket that can be
    decoded. Safe to use from several threads.

    Args:
        max_bad_share: Share of the images read that may be bad.
    """

    def __init__(self, max_bad_share: float) -> None:
        self.max_bad_share = max_bad_share
        self.bad: dict[str, str] = {}
        self._read = self._replaced = 0
        self._lock = threading.Lock()

    def __call__(self, corpus: Corpus, places: range) -> ImageBatch:
        """The images at some places of the order, all of one size.

        Raises:
            UserError: More are bad than may be.
            CorruptShard: Bytes are not those that were indexed.
        """
        pairs = [self._decoded(corpus, sample) for sample in corpus.locate(places)]
        datasets, samples, images = zip(*pairs, strict=True)
        height, width = corpus.bucket_at(places.start)
        return ImageBatch(
            places=np.array(places),
            keys=[sample.key for sample in samples],
            images=np.stack([fit(image, height, width) for image in images]),
            captions=[caption_of(one, of) for one, of in zip(samples, datasets, strict=True)],
            metas=[meta_of(sample) for sample in samples],
        )

    def _decoded(
        self, corpus: Corpus, sample: Sample
    ) -> tuple[Dataset, RawSample, NDArray[np.uint8]]:
        dataset = corpus.datasets[sample.dataset]
        for row in dataset.rows_from(sample.shard, sample.row):
            raw = dataset.read(sample.shard, row)
            try:
                image = image_of(raw)
            except BadImage as error:
                self._count(dataset, raw.key, str(error))
                continue
            with self._lock:
                self._read += 1
            return dataset, raw, image
        tar = dataset.manifest.shards[sample.shard].tar
        raise RunError(f"{dataset.tars.url}/{tar}: no image of a whole bucket can be decoded")

    def _count(self, dataset: Dataset, key: str, reason: str) -> None:
        """Note a bad image by name; say so, and stop when there are too many."""
        where = f"{dataset.prefix.url}: {key}: {reason}"
        with self._lock:
            self._replaced += 1
            new = key not in self.bad
            self.bad[key] = where
            replaced, judged = self._replaced, max(self._read + self._replaced, FEWEST_JUDGED)
        if replaced > self.max_bad_share * judged:
            raise UserError(
                f"data.max_bad_share={self.max_bad_share:g}",
                f"{replaced:,} of {judged:,} images cannot be decoded, such as {where}",
                "make the dataset again without them, or allow a larger share",
            )
        if new:
            say(one_line(f"data: another image is read in the place of a bad one: {where}"))


def image_of(sample: RawSample) -> NDArray[np.uint8]:
    """The image of a raw sample, uint8, (H, W, 3), whichever of the allowed formats it has.

    Raises:
        BadImage: It has none, or one that cannot be decoded.
    """
    extension = next((name for name in IMAGE_EXTENSIONS if name in sample.members), None)
    if extension is None:
        raise BadImage("has no image")
    return decode_image(sample.members[extension])


def caption_of(sample: RawSample, dataset: Dataset) -> str:
    """The caption of a raw sample, from its text or from the json field that its dataset names.

    Raises:
        CorruptShard: It has none there.
    """
    field = dataset.manifest.settings.get("caption_field")
    try:
        # As `ldm shard` would store it: the tars of others hold captions as they are.
        if field:
            return str(meta_of(sample)[field]).strip()
        return caption_text(sample.members[CAPTION])
    except (KeyError, UnicodeDecodeError) as error:
        raise CorruptShard(f"{dataset.prefix.url}: {sample.key}: has no caption") from error


def meta_of(sample: RawSample) -> dict[str, object]:
    """The JSON member of a raw sample; empty if it has none.

    Raises:
        CorruptShard: It is no object.
    """
    content = sample.members.get(META)
    try:
        found = json.loads(content) if content else {}
    except (ValueError, RecursionError) as error:
        raise CorruptShard(f"{sample.key}.{META}: is no JSON") from error
    if not isinstance(found, dict):
        raise CorruptShard(f"{sample.key}.{META}: is no JSON object")
    return found
