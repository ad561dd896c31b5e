"""litdata, a sample as one piece of bytes; variant `tensors` has torch tensors, as its guide."""

import argparse
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("DO_NOT_TRACK", "1")

import litdata
import numpy as np
import torch
from litdata.streaming import downloader

from benchmarks.loaders.payload import BATCH, SHAPES, SHARD_BYTES, samples
from benchmarks.loaders.runner import main


def _items(kind: str, variant: str, _: int) -> Any:
    for _number, moments, text in samples(kind):
        if variant == "tensors":
            arrays = {"moments": moments, "text": text}
            yield {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        else:
            yield moments.tobytes() + text.tobytes()


def write(folder: Path, options: argparse.Namespace) -> None:
    litdata.optimize(
        partial(_items, options.kind, options.variant),
        [0],
        output_dir=str(folder),
        chunk_bytes=SHARD_BYTES,
        num_workers=1,
    )


def _collate(kind: str, items: list[Any]) -> tuple[Any, Any]:
    shapes = SHAPES[kind]
    cut = math.prod(shapes[0])
    flat = [np.frombuffer(item, np.float16) for item in items]
    parts = [one[:cut] for one in flat], [one[cut:] for one in flat]
    moments, text = (
        np.stack(part).reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)
    )
    return moments, text


def _by_hand(dataset: Any, collate: Any, whole: bool) -> Any:
    """Batches without torch's loader around the dataset, which takes time of its own."""
    items = []
    for item in dataset:
        items.append(item)
        if len(items) == BATCH:
            yield collate(items)
            items = []
    if items and whole:
        yield collate(items)


def epochs(place: str, options: argparse.Namespace) -> Any:
    storage: dict[str, Any] = {}
    if place.startswith("s3"):
        # It takes endpoints of https alone, and the benchmark's server has none.
        plain = {**(downloader._OBSTORE_CLIENT_OPTIONS or {}), "allow_http": True}
        downloader._OBSTORE_CLIENT_OPTIONS = plain
        storage["storage_options"] = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
        storage["cache_dir"] = options.cache
    last = options.digest
    dataset = litdata.StreamingDataset(
        place, shuffle=True, max_cache_size="200GB", drop_last=not last, **storage
    )
    if options.variant == "tensors":
        loader = litdata.StreamingDataLoader(
            dataset, batch_size=BATCH, num_workers=options.workers, drop_last=not last
        )
        while True:
            yield ((batch["moments"], batch["text"]) for batch in loader)
    collate = partial(_collate, options.kind)
    if not options.workers:
        while True:
            yield _by_hand(dataset, collate, last)
    loader = litdata.StreamingDataLoader(
        dataset,
        batch_size=BATCH,
        num_workers=options.workers,
        collate_fn=collate,
        drop_last=not last,
    )
    while True:
        yield iter(loader)


if __name__ == "__main__":
    main(write, epochs)
