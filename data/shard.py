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
from conf.groups import FilterConfig
from conf.schema import ShardCommand
from data import manifest
from data.claim import claim
from data.image import encode_png
from data.manifest import Manifest, Shard, canonical_json, parse_manifest, parse_shard, sha256
from data.process import die_with
from data.progress import peak_memory, progress, say, write_summary
from data.sample import CAPTION, META, RawSample
from data.sift import SKIPPED, Skipped, check_budget, read_skipped, sift, skipped_of
from data.sources import Source, build_source
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
    out: Prefix,
    name: str,
    samples: Iterable[RawSample],
    members: tuple[str, ...],
    num_buckets: int,
    **extra: Any,
) -> ShardEntry:
    """Write a shard, its index and, last, the entry that says that both are whole."""
    samples = list(samples)
    content = write_tar(samples)
    index = index_tar(content, members, name)
    index["bucket"] = [sample.bucket for sample in samples]
    buffer = io.BytesIO()
    np.save(buffer, index, allow_pickle=False)
    shard = Shard(
        name=name,
        tar=f"shards/{name}.tar",
        buckets=tuple(np.bincount(index["bucket"], minlength=num_buckets).tolist()),
        bytes=len(content),
        sha256=sha256(content),
        index_sha256=sha256(buffer.getvalue()),
    )
    if len(index):  # a shard of which nothing is left is not listed in the manifest
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
    return ShardEntry(parse_shard(raw["shard"]), raw["extra"])


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
        UserError: The source is empty, too many of its samples are bad, no sample is left, or `out`
            cannot be written or holds something else.
    """
    started = time.perf_counter()
    out = open_prefix(config.out, "out")
    source = build_source(config.source, config.size)
    settings = _settings(config, source)
    done = begin_dataset(out, settings, len(source.keys) * config.size**2 * BYTES_PER_PIXEL)
    if done:
        check_budget(read_skipped(out), len(source.keys), config.max_bad_share)
        say(f"shard: {out.url} is finished ({done.samples:,} images), nothing to do")
        return done
    names = shard_names(len(source.keys), config.shard_samples)
    entries, made = _all_shards(config, source, out, names)
    skipped = skipped_of(entries[name].extra for name in names)
    shards = tuple(entries[name].shard for name in names if entries[name].shard.samples)
    if not shards:
        setting = "filter" if skipped.filtered else f"max_bad_share={config.max_bad_share:g}"
        raise UserError(setting, f"leaves no sample: {skipped}", "mend the source or the bounds")
    if skipped.samples:
        say(f"shard: {skipped}")
        out.write(SKIPPED, json.dumps(skipped.to_dict(), indent=1, sort_keys=True).encode() + b"\n")
    finished = Manifest(
        kind="images",
        buckets=((config.size, config.size),),
        members=IMAGE_MEMBERS,
        shards=shards,
        identity=sha256(canonical_json(settings)),
        settings=settings,
    )
    commit_dataset(out, finished)
    counts = {"bad": skipped.kinds, "filtered": dict(sorted(skipped.filtered.items()))}
    more = {name: count for name, count in counts.items() if count}
    write_summary(out, "shard", made, time.perf_counter() - started, peak_memory(), **more)
    return finished


def _settings(config: ShardCommand, source: Source) -> dict[str, Any]:
    """All that decides the dataset's content.

    How many samples may be bad does not: it only decides whether the command ends, so that one that
    had too many can go on with a larger share. Filters count once there are any.
    """
    filters = {} if config.filter == FilterConfig() else {"filter": asdict(config.filter)}
    return {
        "kind": "images",
        "source": {"kind": config.source.kind, **source.settings},
        "size": config.size,
        "shard_samples": config.shard_samples,
        **filters,
    }


def _all_shards(
    config: ShardCommand, source: Source, out: Prefix, names: list[str]
) -> tuple[dict[str, ShardEntry], int]:
    """The entries of all shards, made now or before, and the samples that were written now."""
    entries = {name: entry for name in names if (entry := finished_shard(out, name))}
    made, skipped = 0, skipped_of(entry.extra for entry in entries.values())
    check_budget(skipped, len(source.keys), config.max_bad_share)
    before = sum(entry.shard.samples for entry in entries.values()) + skipped.samples
    with progress("shard", len(source.keys), before) as meter:
        tasks = [_task(config, source, name) for name in names if name not in entries]
        for entry in _make_shards(config, tasks):
            entries[entry.shard.name] = entry
            made += entry.shard.samples
            left_out = skipped_of([entry.extra]).samples
            skipped = skipped_of([skipped.to_dict(), entry.extra])
            check_budget(skipped, len(source.keys), config.max_bad_share)
            meter.advance(entry.shard.samples + left_out)
    return entries, made


@dataclass(frozen=True, slots=True)
class ShardTask:
    """What a process needs to make one shard.

    Args:
        name: The shard's name.
        keys: The keys of its samples, before any is left out.
        places: Where those lie, if the source had to search for them.
        expected: The source's settings when the command began.
    """

    name: str
    keys: tuple[str, ...]
    places: dict[str, Any] | None
    expected: dict[str, Any]


def _task(config: ShardCommand, source: Source, name: str) -> ShardTask:
    first = int(name) * config.shard_samples
    keys = source.keys[first : first + config.shard_samples]
    places = {key: source.places[key] for key in keys} if source.places else None
    return ShardTask(name, keys, places, source.settings)


def _make_shards(config: ShardCommand, tasks: list[ShardTask]) -> Iterator[ShardEntry]:
    """Make shards in as many processes as asked for, in whatever order they finish."""
    processes = min(config.processes or os.cpu_count() or 1, len(tasks))
    if processes <= 1:
        yield from (_make_shard(config, task) for task in tasks)
        return
    spawn = get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, die_with, (os.getpid(),)) as pool:
        futures = [pool.submit(_make_shard, config, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:  # an error need not wait for the shards that have not begun
            pool.shutdown(cancel_futures=True)


def _make_shard(config: ShardCommand, task: ShardTask) -> ShardEntry:
    """Make one shard; runs in a process of its own.

    Raises:
        RunError: The source is no longer what it was when the command began.
    """
    source = build_source(config.source, config.size, task.places)
    if source.settings != task.expected:
        raise RunError("the source has changed since the command began; choose another out")
    skipped = Skipped()
    samples = [
        RawSample(
            pair.key,
            {
                "png": encode_png(pair.image),
                CAPTION: pair.caption.encode(),
                META: canonical_json({**pair.meta, "caption": pair.caption}),
            },
        )
        for pair in sift(source, task.keys, config, skipped)
    ]
    out = open_prefix(config.out, "out")
    return commit_shard(out, task.name, samples, IMAGE_MEMBERS, 1, **skipped.to_dict())


def _entry_name(name: str) -> str:
    return f"index/{name}.json"
