"""Samples to micro-batches, read ahead by threads; a place in the order is all the state."""

import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from data.image import decode_image
from data.npy import parse_npy
from data.order import Order, rank_places
from data.sample import (
    CAPTION,
    IMAGE_EXTENSIONS,
    META,
    MOMENTS,
    TEXT,
    ImageBatch,
    LatentBatch,
    RawSample,
)
from data.stream import Dataset

T = TypeVar("T")


def read_ahead(jobs: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
    """Run jobs on threads, two a thread ahead of the reader, and give their results in order.

    An error comes out at the place of the job that raised it.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    pending: deque[Future[T]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(job))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def training_places(
    start: int, batch_size: int, micro_batch_size: int, rank: int, world_size: int
) -> Iterator[range]:
    """The places of a rank's micro-batches, from global batch to global batch, without end.

    Args:
        start: Place of the first global batch: the samples seen so far.
        batch_size: Samples of a global batch.
        micro_batch_size: Samples of a rank's micro-batch.
        rank: This rank.
        world_size: Ranks.
    """
    while True:
        for accumulation_step in range(batch_size // (micro_batch_size * world_size)):
            yield rank_places(start, accumulation_step, micro_batch_size, rank, world_size)
        start += batch_size


def image_batches(
    dataset: Dataset, order: Order, places: Iterable[range], threads: int
) -> Iterator[ImageBatch]:
    """Micro-batches of images at the given places."""
    return read_ahead((_job(_image_batch, dataset, order, part) for part in places), threads)


def latent_batches(
    dataset: Dataset, order: Order, places: Iterable[range], threads: int
) -> Iterator[LatentBatch]:
    """Micro-batches of cached latents at the given places."""
    return read_ahead((_job(_latent_batch, dataset, order, part) for part in places), threads)


def _job(
    collate: Callable[..., T], dataset: Dataset, order: Order, places: range
) -> Callable[[], T]:
    def run() -> T:
        samples = [
            dataset.read(int(shard), int(row))
            for shard, row in order.samples(places.start, places.stop)
        ]
        return collate(np.arange(places.start, places.stop), samples)

    return run


def image_of(sample: RawSample) -> NDArray[np.uint8]:
    """The image of a raw sample, uint8, (H, W, 3), whichever of the allowed formats it has."""
    extension = next(name for name in IMAGE_EXTENSIONS if name in sample.members)
    return decode_image(sample.members[extension])


def _image_batch(places: NDArray[np.int64], samples: list[RawSample]) -> ImageBatch:
    return ImageBatch(
        places=places,
        keys=[sample.key for sample in samples],
        images=np.stack([image_of(sample) for sample in samples]),
        captions=[sample.members[CAPTION].decode() for sample in samples],
        metas=[json.loads(sample.members[META]) for sample in samples],
    )


def _latent_batch(places: NDArray[np.int64], samples: list[RawSample]) -> LatentBatch:
    texts = [load_array(sample.members[TEXT]) for sample in samples]
    text, mask = pad_text(texts)
    moments = np.stack([load_array(sample.members[MOMENTS]) for sample in samples]).astype(
        np.float32
    )
    return LatentBatch(
        places=places, keys=[s.key for s in samples], moments=moments, text=text, text_mask=mask
    )


def pad_text(texts: list[NDArray[np.floating]]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Pad embeddings of (L_i, D) with zeros to (B, L, D), and say in (B, L) which are real."""
    length = max(len(text) for text in texts)
    padded = np.zeros((len(texts), length, texts[0].shape[1]), dtype=np.float32)
    mask = np.zeros((len(texts), length), dtype=np.bool_)
    for i, text in enumerate(texts):
        padded[i, : len(text)] = text
        mask[i, : len(text)] = True
    return padded, mask


def load_array(content: bytes) -> NDArray[np.floating]:
    """An array from the bytes of an .npy file; never unpickles."""
    return parse_npy(content).copy()


def dump_array(array: NDArray[np.floating]) -> bytes:
    """The bytes of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
