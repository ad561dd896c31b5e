"""Samples to micro-batches: decoded images, or latents in one block of memory."""

import json
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from conf.errors import RunError, UserError
from data.arrays import pad_arrays, stack_arrays
from data.corpus import Corpus, Sample
from data.draw import Choices, Draw
from data.image import BadImage, decode_image, fit
from data.sample import (
    CAPTION,
    IMAGE_EXTENSIONS,
    META,
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
    """The latents at some places of the order, of one view and one caption each.

    Raises:
        CorruptShard: One is damaged, or is no array as the cache stage writes it.
    """
    latents, text = corpus.main.manifest.latents, corpus.main.manifest.text
    assert latents is not None and text is not None
    wanted = [Choices(latents.members, Draw.view), Choices(text.members, Draw.caption)]
    if text.pooled_members:
        wanted.append(Choices(text.pooled_members, Draw.caption))

    def collate(columns: list[Column]) -> LatentBatch:
        moments, texts, *pooled = columns
        embeddings, mask = pad_arrays(texts)
        numbers = np.arange(places.start, places.stop)
        vectors = stack_arrays(pooled[0]) if pooled else None
        return LatentBatch(numbers, stack_arrays(moments), embeddings, mask, vectors)

    return corpus.checked(places, wanted, collate)


# From a sample, its image, the size that it is to have and the place that it is read at: an image
# of that size, and a caption.
Choose = Callable[
    [Dataset, RawSample, NDArray[np.uint8], tuple[int, int], int], tuple[NDArray[np.uint8], str]
]


def _middle_and_caption(
    dataset: Dataset, sample: RawSample, image: NDArray[np.uint8], size: tuple[int, int], place: int
) -> tuple[NDArray[np.uint8], str]:
    return fit(image, *size), caption_of(sample, dataset)


class ImageCollator:
    """Makes micro-batches of images; one that cannot be decoded gives its place to another.

    Which one is a function of the dataset alone: the next of the same shard and bucket that can be
    decoded. Safe to use from several threads.

    Args:
        max_bad_share: Share of the images read that may be bad.
        choose: What is taken of each sample; None takes the middle of the image and the caption.
    """

    def __init__(self, max_bad_share: float, choose: Choose | None = None) -> None:
        self.max_bad_share = max_bad_share
        self.choose = choose or _middle_and_caption
        self.bad: dict[str, str] = {}
        self._read = self._replaced = 0
        self._lock = threading.Lock()

    def __call__(self, corpus: Corpus, places: range) -> ImageBatch:
        """The images at some places of the order, all of one size.

        Raises:
            UserError: More are bad than may be.
            CorruptShard: Bytes are not those that were indexed.
        """
        found = [self._decoded(corpus, sample) for sample in corpus.locate(places)]
        size = corpus.bucket_at(places.start)
        chosen = [
            self.choose(dataset, sample, image, size, place)
            for (dataset, sample, image), place in zip(found, places, strict=True)
        ]
        samples = [sample for _, sample, _ in found]
        return ImageBatch(
            places=np.array(places),
            keys=[sample.key for sample in samples],
            images=np.stack([image for image, _ in chosen]),
            captions=[caption for _, caption in chosen],
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
