"""mosaicml-streaming, MDS shards with arrays of fixed shape."""

import argparse
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.loaders.payload import BATCH, SHAPES, SHARD_BYTES, samples
from benchmarks.loaders.runner import main

# torchvision, which streaming imports, has no build for the CPU torch; it then lacks its operators.
_library = torch.library.Library("torchvision", "DEF")
_library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
streaming = import_module("streaming")
clean_stale_shared_memory = import_module("streaming.base.util").clean_stale_shared_memory


def write(folder: Path, options: argparse.Namespace) -> None:
    columns = {
        name: f"ndarray:float16:{','.join(map(str, shape))}"
        for name, shape in zip(("moments", "text"), SHAPES[options.kind], strict=True)
    }
    with streaming.MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES) as writer:
        for _, moments, text in samples(options.kind):
            writer.write({"moments": moments, "text": text})


def _collate(items: list[Any]) -> tuple[Any, Any]:
    moments, text = (np.stack([item[name] for item in items]) for name in ("moments", "text"))
    return moments, text


def epochs(place: str, options: argparse.Namespace) -> Any:
    clean_stale_shared_memory()
    remote = place if place.startswith("s3") else None
    if remote:
        os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    dataset = streaming.StreamingDataset(
        local=options.cache if remote else place, remote=remote, shuffle=True, batch_size=BATCH
    )
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        num_workers=options.workers,
        collate_fn=_collate,
        drop_last=not options.digest,
        persistent_workers=options.workers > 0,
    )
    while True:
        yield iter(loader)


if __name__ == "__main__":
    main(write, epochs)
