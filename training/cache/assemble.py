"""Encoded parts put together to shards, while batches fill across the borders of shards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.errors import RunError
from training.cache.plan import Target
from training.cache.read import Decoded, Undecodable
from training.encode import Encoder, NotFinite, Pending, StoredText, not_finite

# How much of the next shard may be read before what a shard still lacks is encoded as it is: rare
# sizes in smaller groups, rather than that a killed process loses more than one shard.
SHARE_OF_NEXT = 0.25


@dataclass(frozen=True, slots=True)
class StoredView:
    """One view of one sample as it is stored, and what the number format did to it."""

    values: NDArray[Any]
    squared_error: float
    max_error: float


@dataclass(slots=True)
class Sample:
    """A sample whose parts come in as batches are done.

    Args:
        key: Its key.
        bucket: Its bucket.
        meta: What is stored of it as JSON.
        views: For each target what is stored of each view.
        texts: What is stored of each caption.
    """

    key: str
    bucket: int
    meta: dict[str, Any]
    views: list[list[StoredView | None]]
    texts: list[StoredText | None]


@dataclass(slots=True)
class ShardWork:
    """A shard on its way.

    Args:
        number: Of the shard.
        rows: How many it has.
        samples: Those that were decoded, by row.
        bad: Those that could not be.
        missing: Parts that are not encoded yet.
        truncated: Captions that were longer than they may be.
        empty: Captions that are empty.
        enlarged: Images that were smaller than their size.
    """

    number: int
    rows: int
    samples: dict[int, Sample] = field(default_factory=dict)
    bad: list[Undecodable] = field(default_factory=list)
    missing: int = 0
    truncated: int = 0
    empty: int = 0
    enlarged: int = 0

    @property
    def read(self) -> bool:
        """Whether all rows are here."""
        return len(self.samples) + len(self.bad) == self.rows


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a part of a sample belongs."""

    work: ShardWork
    sample: Sample
    target: int
    number: int
    where: str


class Assembler:
    """Collects parts of one shape for the encoder, and hands shards on when they are whole.

    Args:
        encoder: What encodes.
        targets: What is made.
        stores_ids: Whether ids of tokens are stored, and captions need no encoding.
    """

    def __init__(self, encoder: Encoder, targets: Sequence[Target], stores_ids: bool) -> None:
        self.encoder = encoder
        self.targets = targets
        self.stores_ids = stores_ids
        self._works: dict[int, ShardWork] = {}
        self._images: dict[tuple[int, int], list[tuple[_Slot, NDArray[np.uint8]]]] = {}
        self._captions: dict[int, dict[bytes, tuple[NDArray[np.int32], list[_Slot]]]] = {}
        self._pending: tuple[Pending, list[_Slot]] | None = None

    def add(
        self, number: int, rows: int, found: Sequence[Decoded | Undecodable]
    ) -> Iterator[ShardWork]:
        """Take in samples of a shard of so many rows; gives the shards that are whole by now."""
        work = self._works.setdefault(number, ShardWork(number, rows))
        decoded = [one for one in found if isinstance(one, Decoded)]
        work.bad += [one for one in found if isinstance(one, Undecodable)]
        captions = [caption for one in decoded for caption in one.captions]
        ids: Iterator[NDArray[np.int32]] = iter(())
        if captions:  # else all are bad, or the shard is empty
            tokens = self.encoder.text_encoder.tokenize(captions)
            work.truncated += tokens.truncated
            ids = iter(tokens.ids)
        work.empty += sum(not caption for caption in captions)
        for one in decoded:
            work.enlarged += one.enlarged
            views: list[list[StoredView | None]] = [[None] * len(part) for part in one.views]
            sample = Sample(one.key, one.bucket, one.meta, views, [None] * len(one.captions))
            work.samples[one.row] = sample
            for caption in range(len(one.captions)):
                self._add_caption(_Slot(work, sample, 0, caption, one.key), next(ids))
            for target, parts in enumerate(one.views):
                for number_of_view, image in enumerate(parts):
                    slot = _Slot(work, sample, target, number_of_view, one.key)
                    self._add_image(slot, image)
        if len(work.samples) + len(work.bad) >= SHARE_OF_NEXT * work.rows:
            self._encode_rest({n for n, one in self._works.items() if one.read and one is not work})
        yield from self._whole()

    def finish(self) -> Iterator[ShardWork]:
        """Encode what waits, and give the last shards."""
        self._encode_rest({*self._works})
        yield from self._whole()

    def _encode_rest(self, numbers: set[int]) -> None:
        """Encode what shards of these numbers lack, with all that waits for the same batches."""
        for size, waiting in list(self._images.items()):
            if any(slot.work.number in numbers for slot, _ in waiting):
                self._encode_images(size)
        for length, captions in list(self._captions.items()):
            if any(slot.work.number in numbers for _, slots in captions.values() for slot in slots):
                self._encode_captions(length)
        if self._pending and any(slot.work.number in numbers for slot in self._pending[1]):
            self._collect()

    def _add_image(self, slot: _Slot, image: NDArray[np.uint8]) -> None:
        slot.work.missing += 1
        size = (image.shape[0], image.shape[1])
        waiting = self._images.setdefault(size, [])
        waiting.append((slot, image))
        if len(waiting) >= self.encoder.images_at_once(*size):
            self._encode_images(size)

    def _add_caption(self, slot: _Slot, ids: NDArray[np.int32]) -> None:
        if self.stores_ids:
            slot.sample.texts[slot.number] = StoredText(np.ascontiguousarray(ids.T), None)
            return
        slot.work.missing += 1
        length = self.encoder.padded_length(ids.shape[1])
        waiting = self._captions.setdefault(length, {})
        waiting.setdefault(ids.tobytes(), (ids, []))[1].append(slot)  # equal ones are encoded once
        if len(waiting) >= self.encoder.most_captions:
            self._encode_captions(length)

    def _encode_images(self, size: tuple[int, int]) -> None:
        """Begin to encode a batch; the one before it is collected meanwhile."""
        waiting = self._images.pop(size)
        pending = self.encoder.latents([image for _, image in waiting])
        self._collect()
        self._pending = (pending, [slot for slot, _ in waiting])

    def _collect(self) -> None:
        if self._pending is None:
            return
        pending, slots = self._pending
        self._pending = None
        latents = pending.result()
        for row, slot in enumerate(slots):
            if not latents.finite[row]:
                what = f"autoencoder's moments of {slot.where}"
                computed = bool(latents.computed[row])
                raise RunError(not_finite(what, self.encoder.config, computed))
            slot.sample.views[slot.target][slot.number] = StoredView(
                latents.values[row].copy(),
                float(latents.squared_error[row]),
                float(latents.max_error[row]),
            )
            slot.work.missing -= 1

    def _encode_captions(self, length: int) -> None:
        waiting = list(self._captions.pop(length).values())
        try:
            texts = self.encoder.texts([ids for ids, _ in waiting])
        except NotFinite as error:
            what = f"text encoder's embeddings of {waiting[error.number][1][0].where}"
            raise RunError(not_finite(what, self.encoder.config, error.computed)) from error
        for stored, (_, slots) in zip(texts, waiting, strict=True):
            for slot in slots:
                slot.sample.texts[slot.number] = stored
                slot.work.missing -= 1

    def _whole(self) -> Iterator[ShardWork]:
        for number, work in list(self._works.items()):
            if work.read and not work.missing:
                del self._works[number]
                yield work
