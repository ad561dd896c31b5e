"""Hugging Face datasets: a mapped arrow table; variant `arrays` has arrays, otherwise bytes."""

import argparse
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch.utils.data import DataLoader

from benchmarks.loaders.payload import BATCH, SHAPES, samples
from benchmarks.loaders.runner import main

NAMES = ("moments", "text")


def write(folder: Path, options: argparse.Namespace) -> None:
    arrays = options.variant == "arrays"

    def rows(kind: str) -> Any:
        for _, moments, text in samples(kind):
            pair = (moments, text) if arrays else (moments.tobytes(), text.tobytes())
            yield dict(zip(NAMES, pair, strict=True))

    if arrays:
        moments, text = SHAPES[options.kind]
        kinds = datasets.Array3D(moments, "float16"), datasets.Array2D(text, "float16")
    else:
        kinds = datasets.Value("binary"), datasets.Value("binary")
    cache = folder.with_suffix(".cache")
    made = datasets.Dataset.from_generator(
        rows,
        features=datasets.Features(dict(zip(NAMES, kinds, strict=True))),
        gen_kwargs={"kind": options.kind},
        cache_dir=str(cache),
        writer_batch_size=100,
    )
    made.save_to_disk(str(folder))
    shutil.rmtree(cache)


class _Batches:
    """Whole batches by number: one lookup in the table for 32 rows."""

    def __init__(self, table: Any, rows: list[int], options: argparse.Namespace) -> None:
        self.arrays = options.variant == "arrays"
        # Told the type, or it makes them float32.
        self.table = table.with_format("numpy", dtype=np.float16) if self.arrays else table
        self.rows = rows
        self.shapes = SHAPES[options.kind]

    def __len__(self) -> int:
        return -(-len(self.rows) // BATCH)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        found = self.table[self.rows[number * BATCH : (number + 1) * BATCH]]
        if self.arrays:
            return found["moments"], found["text"]
        moments, text = (
            np.stack([np.frombuffer(one, np.float16).reshape(shape) for one in found[name]])
            for name, shape in zip(NAMES, self.shapes, strict=True)
        )
        return moments, text


def epochs(place: str, options: argparse.Namespace) -> Any:
    table = datasets.load_from_disk(place)
    chance = np.random.default_rng(0)
    while True:
        rows = chance.permutation(len(table))[options.rank :: options.ranks].tolist()
        if not options.digest:
            rows = rows[: len(rows) // BATCH * BATCH]
        batches = _Batches(table, rows, options)
        if options.workers:
            yield iter(DataLoader(batches, batch_size=None, num_workers=options.workers))
        else:
            yield (batches[i] for i in range(len(batches)))


if __name__ == "__main__":
    main(write, epochs)
