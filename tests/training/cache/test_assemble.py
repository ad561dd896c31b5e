"""Shards are handed on soon after they are read, whatever sizes their images have."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.cache.assemble import Assembler
from training.cache.read import Decoded
from training.encode import StoredLatents, StoredText

SQUARE, WIDE = (8, 8), (8, 16)


class _Encoder:
    """Counts what it is given; eight images at once."""

    def __init__(self) -> None:
        self.batches: list[tuple[tuple[int, int], int]] = []
        self.most_captions = 32
        tokenize = lambda captions: SimpleNamespace(  # noqa: E731
            ids=[np.zeros((1, 3), np.int32)] * len(captions), truncated=0
        )
        self.text_encoder = SimpleNamespace(tokenize=tokenize)

    def images_at_once(self, height: int, width: int) -> int:
        return 8

    def padded_length(self, length: int) -> int:
        return 8

    def latents(self, images: Sequence[NDArray[np.uint8]]) -> Any:
        self.batches.append((images[0].shape[:2], len(images)))
        count = len(images)
        stored = StoredLatents(
            np.zeros((count, 8, 1, 1)),
            np.zeros(count),
            np.zeros(count),
            np.ones(count, bool),
            np.ones(count, bool),
        )
        return SimpleNamespace(result=lambda: stored)

    def texts(self, ids: Sequence[NDArray[np.int32]]) -> list[StoredText]:
        return [StoredText(np.zeros((3, 4)), None) for _ in ids]


def _row(row: int, size: tuple[int, int]) -> Decoded:
    views = [[np.zeros((*size, 3), np.uint8)]]
    return Decoded(row, f"s{row}", int(size == WIDE), {}, ["a caption"], views, False)


def _feed(shards: int, rows: int, wide: int) -> tuple[_Encoder, list[tuple[int, int]]]:
    """Reads shards row by row; gives each shard's number and how many rows were read by then."""
    encoder = _Encoder()
    assembler, handed, read = Assembler(encoder, [object()], False), [], 0  # type: ignore[arg-type,list-item]
    for shard in range(shards):
        for row in range(rows):
            size = WIDE if row < wide else SQUARE
            read += 1
            for work in assembler.add(shard, rows, [_row(row, size)]):
                handed.append((work.number, read))
    handed += [(work.number, read) for work in assembler.finish()]
    return encoder, handed


def test_a_shard_is_whole_before_a_quarter_of_the_next_is_read() -> None:
    """So a process that is killed loses one shard and a part of the next, whatever its buckets."""
    _, handed = _feed(shards=5, rows=40, wide=1)
    assert [number for number, _ in handed] == [*range(5)]
    for number, read in handed:
        assert read <= (number + 1) * 40 + 10


def test_batches_fill_across_the_borders_of_shards() -> None:
    encoder, _ = _feed(shards=4, rows=20, wide=0)
    assert [count for _, count in encoder.batches] == [8] * 10


def test_rare_sizes_are_encoded_with_few_empty_places() -> None:
    encoder, _ = _feed(shards=4, rows=40, wide=3)
    assert sum(count for _, count in encoder.batches) == 160
    wide = [count for size, count in encoder.batches if size == WIDE]
    assert len(wide) <= 4
