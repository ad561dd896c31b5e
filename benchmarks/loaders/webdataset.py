"""webdataset; variants are the payloads: npy, raw (bytes of known shape) or safetensors."""

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from torch.utils.data import DataLoader

from benchmarks.loaders.payload import BATCH, SHAPES, SHARD_BYTES, samples
from benchmarks.loaders.runner import main


def write(folder: Path, options: argparse.Namespace) -> None:
    folder.mkdir(parents=True)
    pattern = str(folder / "%05d.tar")
    with wds.ShardWriter(pattern, maxcount=10**9, maxsize=SHARD_BYTES, verbose=0) as writer:
        for i, moments, text in samples(options.kind):
            writer.write({"__key__": f"{i:08d}", **_encode(moments, text, options.variant)})


def _encode(moments: Any, text: Any, variant: str) -> dict[str, bytes]:
    if variant == "safetensors":
        from safetensors.numpy import save

        return {"safetensors": save({"moments": moments.copy(), "text": text.copy()})}
    if variant == "raw":
        return {"moments.raw": moments.tobytes(), "text.raw": text.tobytes()}
    return {"moments.npy": _npy(moments), "text.npy": _npy(text)}


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _decoder(kind: str, variant: str) -> Any:
    moments_shape, text_shape = SHAPES[kind]
    if variant == "safetensors":
        from safetensors.numpy import load

        def decode(sample: dict[str, Any]) -> tuple[Any, Any]:
            arrays = load(sample["safetensors"])
            return arrays["moments"], arrays["text"]

    elif variant == "raw":

        def decode(sample: dict[str, Any]) -> tuple[Any, Any]:
            return (
                np.frombuffer(sample["moments.raw"], np.float16).reshape(moments_shape),
                np.frombuffer(sample["text.raw"], np.float16).reshape(text_shape),
            )

    else:

        def decode(sample: dict[str, Any]) -> tuple[Any, Any]:
            return tuple(np.load(io.BytesIO(sample[f"{name}.npy"])) for name in ("moments", "text"))

    return decode


def _collate(pairs: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    moments, texts = zip(*pairs, strict=True)
    return np.stack(moments), np.stack(texts)


def epochs(place: str, options: argparse.Namespace) -> Any:
    if place.startswith("http"):  # a list of names lies beside the tars
        import urllib.request

        with urllib.request.urlopen(f"{place}/names.txt") as answer:
            urls = [f"{place}/{name}" for name in answer.read().decode().split()]
    else:
        urls = sorted(map(str, Path(place).glob("*.tar")))
    urls = urls[options.rank :: options.ranks]
    dataset = (
        wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
        .shuffle(1000 if options.kind == "223 KB" else 5000)
        .map(_decoder(options.kind, options.variant))
        .batched(BATCH, collation_fn=_collate, partial=options.digest)
    )
    if options.workers:
        loader = DataLoader(
            dataset, batch_size=None, num_workers=options.workers, persistent_workers=True
        )
        while True:
            yield iter(loader)
    while True:
        yield iter(dataset)


if __name__ == "__main__":
    main(write, epochs)
