"""Datasets are made here, shard by shard, raw and latent alike.

Each shard appears whole, an interrupted command takes up where it was, and an `out` that holds
something else is refused.
"""

import io
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

from conf.errors import RunError, UserError
from conf.schema import ShardCommand
from data import manifest
from data.claim import claim
from data.image import encode_png
from data.manifest import Manifest, Shard, canonical_json, parse_manifest, sha256
from data.process import die_with
from data.progress import peak_memory, progress, say, write_summary
from data.sample import CAPTION, META, RawSample
from data.source import build_source
from data.storage import Prefix, open_prefix
from data.tar import index_tar, write_tar

IMAGE_MEMBERS = ("png", CAPTION, META)
# A 64-pixel emoji takes 3 kB; a pixel of a photograph as PNG about 2 bytes.
BYTES_PER_PIXEL = 2


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A finished shard and what its maker remembers of it, JSON-ready."""

    shard: Shard
    extra: dict[str, Any]


def begin_dataset(out: Prefix, settings: dict[str, Any], num_bytes: int = 0) -> Manifest | None:
    """Claim a prefix for the dataset that `settings` describe.

    Args:
        out: Where it is to be.
        settings: All that decides its content, JSON-ready.
        num_bytes: Room that it will take.

    Returns:
        Its manifest if it is finished already, else None.

    Raises:
        UserError: The prefix holds, finished or not, another dataset, or cannot be written.
    """
    try:
        there = parse_manifest(out.read(manifest.NAME), f"{out.url}/{manifest.NAME}")
    except FileNotFoundError:
        there = None
    if there and there.identity == sha256(canonical_json(settings)):
        return there
    out.require_writable(num_bytes)
    claim(out, settings)
    if there:
        raise UserError(f"out={out.url}", "holds another dataset", "choose another out")
    return None


def commit_shard(
    out: Prefix, name: str, samples: Iterable[RawSample], members: tuple[str, ...], **extra: Any
) -> ShardEntry:
    """Write a shard, its index and, last, the entry that says that both are whole."""
    content = write_tar(samples)
    index = index_tar(content, members, name)
    buffer = io.BytesIO()
    np.save(buffer, index, allow_pickle=False)
    shard = Shard(name, len(index), len(content), sha256(content), sha256(buffer.getvalue()))
    out.write(shard.tar, content)
    out.write(shard.index, buffer.getvalue())
    out.write(_entry_name(name), canonical_json({"shard": asdict(shard), "extra": extra}))
    return ShardEntry(shard, extra)


def finished_shard(out: Prefix, name: str) -> ShardEntry | None:
    """The entry of a shard that an earlier process finished, or None."""
    try:
        raw = json.loads(out.read(_entry_name(name)))
    except FileNotFoundError:
        return None
    return ShardEntry(Shard(**raw["shard"]), raw["extra"])


def commit_dataset(out: Prefix, finished: Manifest) -> None:
    """Write the manifest: from here on the dataset exists."""
    try:
        out.create(manifest.NAME, finished.to_json())
    except FileExistsError:
        there = parse_manifest(out.read(manifest.NAME), f"{out.url}/{manifest.NAME}")
        if there.fingerprint != finished.fingerprint:
            raise UserError(
                f"out={out.url}",
                "was finished by another process with other content",
                "choose another out",
            ) from None


def shard_names(samples: int, shard_samples: int) -> list[str]:
    """Names of the shards that `samples` make, numbered from 0."""
    return [f"{i:05d}" for i in range(-(-samples // shard_samples))]


def make_dataset(config: ShardCommand) -> Manifest:
    """`ldm shard`: a source of pairs to raw shards.

    Raises:
        UserError: The source is empty, or `out` cannot be written or holds something else.
    """
    started = time.perf_counter()
    out = open_prefix(config.out, "out")
    source = build_source(config.source, config.size)
    settings = {
        "kind": "images",
        "source": {"kind": config.source.kind, **source.settings},
        "size": config.size,
        "shard_samples": config.shard_samples,
    }
    done = begin_dataset(out, settings, len(source.keys) * config.size**2 * BYTES_PER_PIXEL)
    if done:
        say(f"shard: {out.url} is finished ({done.samples:,} images), nothing to do")
        return done
    names = shard_names(len(source.keys), config.shard_samples)
    entries = {name: entry for name in names if (entry := finished_shard(out, name))}
    made = 0
    with progress(
        "shard", len(source.keys), sum(e.shard.samples for e in entries.values())
    ) as meter:
        missing = [name for name in names if name not in entries]
        for entry in _make_shards(config, missing, source.settings):
            entries[entry.shard.name] = entry
            made += entry.shard.samples
            meter.advance(entry.shard.samples)
    finished = Manifest(
        kind="images",
        members=IMAGE_MEMBERS,
        shards=tuple(entries[name].shard for name in names),
        identity=sha256(canonical_json(settings)),
        settings=settings,
    )
    commit_dataset(out, finished)
    write_summary(out, "shard", made, time.perf_counter() - started, peak_memory())
    return finished


def _make_shards(
    config: ShardCommand, names: list[str], expected: dict[str, Any]
) -> Iterator[ShardEntry]:
    """Make shards in as many processes as asked for, in whatever order they finish."""
    processes = min(config.processes or os.cpu_count() or 1, len(names))
    if processes <= 1:
        yield from (_make_shard(config, name, expected) for name in names)
        return
    spawn = get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, die_with, (os.getpid(),)) as pool:
        futures = [pool.submit(_make_shard, config, name, expected) for name in names]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:  # an error need not wait for the shards that have not begun
            pool.shutdown(cancel_futures=True)


def _make_shard(config: ShardCommand, name: str, expected: dict[str, Any]) -> ShardEntry:
    """Make one shard; runs in a process of its own.

    Raises:
        RunError: The source is no longer what `expected` says.
    """
    source = build_source(config.source, config.size)
    if source.settings != expected:
        raise RunError("the source has changed since the command began; choose another out")
    first = int(name) * config.shard_samples
    keys = source.keys[first : first + config.shard_samples]
    samples = (
        RawSample(
            pair.key,
            {
                "png": encode_png(pair.image),
                CAPTION: pair.caption.encode(),
                META: canonical_json({**pair.meta, "caption": pair.caption}),
            },
        )
        for pair in map(source.pair, keys)
    )
    return commit_shard(open_prefix(config.out, "out"), name, samples, IMAGE_MEMBERS)


def _entry_name(name: str) -> str:
    return f"index/{name}.json"
