"""Latent Foundry; `--workers` is `data.threads`, 0 as with the peers: in the process itself."""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import s3fs as s3fs  # loaded here, as the peers load theirs, and not when it is first needed

from benchmarks.loaders.payload import BATCH, SHAPES, SHARD_BYTES, sample_bytes, samples
from benchmarks.loaders.runner import main
from conf.groups import DataConfig
from data.arrays import dump_array
from data.collate import latent_batch
from data.corpus import open_corpus
from data.loader import Loader
from data.manifest import EMPTY_TEXT, Manifest, sha256
from data.sample import META, MOMENTS, TEXT, RawSample
from data.shard import begin_dataset, commit_dataset, commit_shard
from data.spec import LatentSpec, TextSpec
from data.storage import open_prefix


def write(folder: Path, options: argparse.Namespace) -> None:
    write_samples(folder, options.kind, samples(options.kind))


def write_samples(folder: Path, kind: str, numbered: Iterator[tuple[int, Any, Any]]) -> None:
    """A dataset of latents."""
    out = open_prefix(str(folder), "out")
    begin_dataset(out, {"kind": "latents"})
    each = SHARD_BYTES // sample_bytes(kind)
    entries = []
    while some := [_sample(*one) for one in islice(numbered, each)]:
        name = f"{len(entries):05d}"
        entries.append(commit_shard(out, name, some, (MOMENTS, TEXT, META), 1))
    (channels, side, _), (tokens, width) = SHAPES[kind]
    empty = dump_array(next(samples(kind))[2])
    out.write(EMPTY_TEXT, empty)
    ones = (1.0,) * (channels // 2)
    manifest = Manifest(
        kind="latents",
        buckets=((8 * side, 8 * side),),
        members=(MOMENTS, TEXT, META),
        shards=tuple(entry.shard for entry in entries),
        identity="of a benchmark",
        settings={},
        latents=LatentSpec(channels // 2, side, 8, "float16", "none", *[ones] * 4),
        text=TextSpec("none", width, tokens, "float16", sha256(empty)),
    )
    commit_dataset(out, manifest)


def _sample(number: int, moments: Any, text: Any) -> RawSample:
    members = {MOMENTS: dump_array(moments), TEXT: dump_array(text), META: b"{}"}
    return RawSample(f"{number:08d}", members)


def epochs(place: str, options: argparse.Namespace) -> Any:
    # Shuffled over about as many samples as webdataset's buffer holds.
    cache = options.cache or None
    config = DataConfig(url=place, local_cache=cache, memory_gb=options.memory, block_shards=4)
    batch = BATCH * options.ranks
    corpus = open_corpus(config, "latents", batch)
    loader = Loader(
        corpus, latent_batch, batch, BATCH, options.rank, options.ranks, options.workers
    )
    while True:
        yield ((one.moments, one.text) for one in islice(loader, corpus.samples // batch))


if __name__ == "__main__":
    main(write, epochs)
