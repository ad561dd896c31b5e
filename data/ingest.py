"""`ldm shard`: a source of pairs to a dataset of images, by one process or by several at once.

Whoever runs the command with the same settings and `out` works on the same dataset. A rank makes
its shards, and whichever finds all of them finished writes the manifest.
"""

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from conf.enums import Crop
from conf.errors import RunError, UserError
from conf.groups import FilterConfig, WebDatasetSource
from conf.schema import ShardCommand
from data.adopt import MEMBERS, TarTask, adopt_tar
from data.bucket import make_buckets
from data.claim import release
from data.manifest import Manifest, canonical_json, sha256
from data.process import run_tasks, usable_cores
from data.progress import peak_memory, progress, write_summary
from data.ranks import Ranks, this_rank
from data.reshard import BYTES_PER_PIXEL, ENLARGED, ShardTask, image_members, make_shard
from data.say import say
from data.shard import (
    ShardEntry,
    begin_dataset,
    commit_dataset,
    finished_shards,
    forget_shards,
    shard_names,
)
from data.sift import SKIPPED, Skipped, check_budget, read_skipped, skipped_of
from data.sources import BadSource, Source, build_source, require_pairs
from data.sources.tars import Tars, list_tars
from data.sources.webdataset import SEARCHES, SearchTask, search_tar, searches, webdataset_source
from data.storage import Prefix, open_prefix

# Raised when the same source and settings would give other bytes.
VERSION = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """The shards of a dataset and how each is made.

    Args:
        names: The shards' names, in order.
        task: What a process needs to make the shard of a name.
        make: Makes a shard.
        samples: How many samples there are, good and bad, if that is known before the work.
        members: The manifest's members.
        tars: The manifest's tars.
    """

    names: Sequence[str]
    task: Callable[[str], Any]
    make: Callable[[Any], ShardEntry]
    samples: int | None
    members: tuple[str, ...]
    tars: str | None = None


def make_dataset(config: ShardCommand) -> Manifest | None:
    """Make a dataset, or this rank's part of it.

    Returns:
        The manifest, or None if shards of other ranks are missing.

    Raises:
        UserError: The source is empty, too many of its samples are bad, no sample is left, or `out`
            cannot be written or holds something else.
        RunError: The source has changed since the command began.
    """
    started = time.perf_counter()
    out, ranks = open_prefix(config.out, "out"), this_rank(config.rank, config.world_size)
    source = _look(config)
    settings = _settings(config, source)
    done = begin_dataset(out, settings, _room(config, source), shared=_beside(source, out))
    if done:
        skipped = read_skipped(out)
        check_budget(skipped, done.samples + skipped.samples, config.max_bad_share)
        say(f"shard: {out.url} is finished ({done.samples:,} images), nothing to do")
        return done
    try:
        plan = _plan(config, source, out, ranks)
        entries, made = _make_shards(config, plan, out, ranks)
    except BadSource:
        if ranks.world_size == 1:
            _give_up(config, source, out)
        raise
    if made and _look(config).settings != source.settings:
        raise RunError("the source has changed since the command began; choose another out")
    missing = [name for name in plan.names if name not in entries]
    if missing:
        say(
            f"shard: rank {ranks.rank} of {ranks.world_size} has made its shards; "
            f"{len(missing):,} of {len(plan.names):,} are missing, the first is {missing[0]}"
        )
        return None
    finished = _finish(config, plan, out, settings, entries)
    _summarise(out, made, started, entries)
    return finished


def _look(config: ShardCommand) -> Source | Tars:
    """What there is to make a dataset of, as far as a listing tells."""
    if not isinstance(config.source, WebDatasetSource):
        return build_source(config.source)
    tars = list_tars(config.source)
    require_pairs(config.source, len(tars.names))
    return tars


def _settings(config: ShardCommand, source: Source | Tars) -> dict[str, Any]:
    """All that decides the dataset's content.

    How many samples may be bad does not: it only decides whether the command ends, so that one that
    had too many can go on with a larger share. Filters and the like count once they are in use.
    """
    filters = {} if config.filter == FilterConfig() else {"filter": asdict(config.filter)}
    buckets = {} if config.buckets.max_aspect == 1 else {"buckets": asdict(config.buckets)}
    common = {
        "kind": "images",
        "version": VERSION,
        "source": {"kind": config.source.kind, **source.settings},
        "size": config.size,
        **buckets,
        **filters,
    }
    if _in_place(config):
        assert isinstance(config.source, WebDatasetSource)
        field, check = config.source.caption_field, config.source.check
        return {**common, "in_place": True, "check": check, "caption_field": field}
    seed = {"seed": config.seed} if config.crop is Crop.random else {}
    return {
        **common,
        "shard_samples": config.shard_samples,
        "crop": config.crop.value,
        **seed,
        "format": config.format.value,
        "quality": config.quality,
    }


def _in_place(config: ShardCommand) -> bool:
    return isinstance(config.source, WebDatasetSource) and config.source.in_place


def _beside(source: Source | Tars, out: Prefix) -> bool:
    """Whether the dataset is to lie where the tars of its source are."""
    if not isinstance(source, Tars):
        return False
    return source.prefix.absolute.rstrip("/") == out.absolute.rstrip("/")


def _room(config: ShardCommand, source: Source | Tars) -> int:
    """Bytes that the dataset will take, about; of tars nobody knows before they are searched."""
    samples = source.samples if isinstance(source, Source) else 0
    return int(samples * config.size**2 * BYTES_PER_PIXEL[config.format])


def _processes(config: ShardCommand, tasks: int) -> int:
    return min(config.processes or usable_cores(), tasks)


def _plan(config: ShardCommand, source: Source | Tars, out: Prefix, ranks: Ranks) -> Plan:
    if isinstance(source, Tars) and _in_place(config):
        return _plan_in_place(config, source)
    if isinstance(source, Tars):
        source = _searched(config, source, out, ranks)
        out.require_writable(_room(config, source))
    size, samples, part = config.shard_samples, source.samples, source.part

    def task(name: str) -> ShardTask:
        first = int(name) * size
        return ShardTask(name, part(first, min(first + size, samples)))

    names = shard_names(samples, size)
    return Plan(names, task, partial(make_shard, config), samples, image_members(config))


def _give_up(config: ShardCommand, source: Source | Tars, out: Prefix) -> None:
    """Leave a place free for the source once it is mended: then it is another one."""
    if isinstance(source, Tars) and _in_place(config):
        forget_shards(out, shard_names(len(source.names), 1))
    else:
        out.remove(SEARCHES)
    release(out)


def _plan_in_place(config: ShardCommand, tars: Tars) -> Plan:
    names = shard_names(len(tars.names), 1)

    def task(name: str) -> TarTask:
        return TarTask(name, tars.names[int(name)])

    work = partial(adopt_tar, config)
    return Plan(names, task, work, None, MEMBERS, tars=tars.prefix.absolute)


def _searched(config: ShardCommand, tars: Tars, out: Prefix, ranks: Ranks) -> Source:
    """The samples of tars: this rank's are searched first, then those that nobody has."""
    assert isinstance(config.source, WebDatasetSource)
    every = range(len(tars.names))
    found = searches(out)
    with progress("search", len(every), len(found), unit="tars") as meter:
        for numbers in (ranks.own(every), every):
            tasks = [SearchTask(tars.names[i], i, out.url) for i in numbers if i not in found]
            work = partial(search_tar, config.source)
            for _ in run_tasks(work, tasks, _processes(config, len(tasks))):
                meter.advance(1)
            found = searches(out)
    source = webdataset_source(tars, found, out)
    require_pairs(config.source, source.samples)
    return source


def _make_shards(
    config: ShardCommand, plan: Plan, out: Prefix, ranks: Ranks
) -> tuple[dict[str, ShardEntry], int]:
    """The entries of all shards that are there in the end, and the samples that were made now."""
    entries = finished_shards(out, plan.names)
    made, skipped = 0, skipped_of(entry.extra for entry in entries.values())
    _check(config, plan, skipped)
    missing = [name for name in ranks.own(plan.names) if name not in entries]
    unit = "tars" if plan.samples is None else "images"
    total = len(plan.names) if plan.samples is None else plan.samples
    with progress("shard", total, _done(entries.values(), unit), unit) as meter:
        tasks = map(plan.task, missing)
        for entry in run_tasks(plan.make, tasks, _processes(config, len(missing))):
            entries[entry.shard.name] = entry
            made += entry.shard.samples
            skipped.add(entry.extra)
            _check(config, plan, skipped)
            meter.advance(_done([entry], unit))
    if len(entries) < len(plan.names):  # other ranks may have been as quick
        entries |= finished_shards(out, [name for name in plan.names if name not in entries])
    return entries, made


def _done(entries: Collection[ShardEntry], unit: str) -> int:
    """How much of a unit shards make up, what was left out included."""
    if unit == "tars":
        return len(entries)
    left_out = skipped_of(entry.extra for entry in entries).samples
    return left_out + sum(entry.shard.samples for entry in entries)


def _check(config: ShardCommand, plan: Plan, skipped: Skipped) -> None:
    """Stop as soon as it is certain that too many samples are bad."""
    if plan.samples is not None:
        check_budget(skipped, plan.samples, config.max_bad_share)


def _finish(
    config: ShardCommand,
    plan: Plan,
    out: Prefix,
    settings: dict[str, Any],
    entries: dict[str, ShardEntry],
) -> Manifest:
    """Write the manifest, and beside it what was skipped."""
    skipped = skipped_of(entries[name].extra for name in plan.names)
    shards = tuple(entries[name].shard for name in plan.names if entries[name].shard.samples)
    samples = sum(shard.samples for shard in shards)
    check_budget(skipped, samples + skipped.samples, config.max_bad_share)
    if not shards:
        setting = "filter" if skipped.filtered else f"max_bad_share={config.max_bad_share:g}"
        raise UserError(setting, f"leaves no sample: {skipped}", "mend the source or the bounds")
    if skipped.samples:
        say(f"shard: {skipped}")
        out.write(SKIPPED, json.dumps(skipped.to_dict(), indent=1, sort_keys=True).encode() + b"\n")
    finished = Manifest(
        kind="images",
        buckets=make_buckets(config.size, config.buckets.step, config.buckets.max_aspect),
        members=plan.members,
        shards=shards,
        identity=sha256(canonical_json(settings)),
        settings=settings,
        tars=plan.tars,
    )
    commit_dataset(out, finished)
    out.remove(SEARCHES)
    return finished


def _summarise(out: Prefix, made: int, started: float, entries: dict[str, ShardEntry]) -> None:
    skipped = skipped_of(entry.extra for entry in entries.values())
    enlarged = sum(entry.extra.get(ENLARGED, 0) for entry in entries.values())
    if enlarged:
        say(f"shard: {enlarged:,} images were smaller than their size and were enlarged")
    counts = {
        "bad": skipped.kinds,
        "filtered": dict(sorted(skipped.filtered.items())),
        "enlarged": enlarged,
    }
    more = {name: count for name, count in counts.items() if count}
    write_summary(out, "shard", made, time.perf_counter() - started, peak_memory(), **more)
