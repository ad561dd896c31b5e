"""`ldm cache`: one process's part of a cache, by shards that any other may finish first.

Reading and decoding run on threads, encoding on this one, and writing on one more: a shard is
written while the next is encoded.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from conf.enums import TextStore
from conf.schema import CacheCommand
from data.addressed import sweep, take_shard
from data.loader import read_ahead
from data.manifest import Manifest
from data.progress import Meter, peak_memory, progress, write_summary
from data.ranks import Ranks, this_rank
from data.say import say
from data.shard import ShardEntry, begin_dataset, finished_shard, finished_shards
from data.sift import check_budget, skipped_of
from data.stream import Dataset, open_dataset
from training.cache.assemble import Assembler, ShardWork
from training.cache.plan import Target, bytes_of_sample, plan_targets
from training.cache.read import ROWS_AT_ONCE, read_rows
from training.cache.write import finish, say_counts, write_shard
from training.encode import Encoder
from training.encoders import load_autoencoder
from training.models.text import load_text_encoder

OPEN_SHARDS = 3  # the one that is read, the next, and one that a thread is late with

Entries = dict[str, ShardEntry]


def make_cache(config: CacheCommand) -> list[Manifest]:
    """Encode a dataset of images, or this rank's part of it; what is there already is kept.

    Returns:
        The manifests of the datasets that are finished.

    Raises:
        UserError: A setting does not fit, `out` holds another cache, or too many images are bad.
        RunError: An encoder gives numbers that are not finite.
    """
    started = time.perf_counter()
    ranks = this_rank(config.rank, config.world_size)
    memory = int(config.data.memory_gb * 1e9)
    data = open_dataset(config.data.url, "images", open_shards=OPEN_SHARDS, memory=memory)
    autoencoder = load_autoencoder(config.autoencoder)
    text_encoder = load_text_encoder(config.text_encoder)
    encoder = Encoder(autoencoder, text_encoder, config.encoding, config.micro_batch_size)
    targets = plan_targets(config, data, autoencoder, text_encoder)
    done = [_begin(config, data, encoder, target) for target in targets]
    due = [target for target, there in zip(targets, done, strict=True) if there is None]
    finished = [there for there in done if there is not None]
    for there, target in zip(done, targets, strict=True):
        if there is not None:
            sweep(target.out, there)  # whoever finished it may have been killed before this
            say(f"cache: {target.out.url} is finished ({there.samples:,} latents), nothing to do")
    if not due:
        return finished
    pipeline = _Pipeline(config, data, encoder, due, ranks)
    encoded = pipeline.run()
    for target in due:
        entries = finished_shards(target.out, target.names)
        missing = [name for name in target.names if name not in entries]
        if missing:
            say(
                f"cache: rank {ranks.rank} of {ranks.world_size} has made its shards; "
                f"{len(missing):,} of {len(target.names):,} are missing in {target.out.url}, "
                f"the first is {missing[0]}"
            )
            continue
        ordered = [entries[name] for name in target.names]
        finished.append(finish(config, data, autoencoder, encoder, target, ordered))
        counts = say_counts(config, ordered)
        seconds = time.perf_counter() - started
        counts["waiting_share"] = round(pipeline.waited / seconds, 4)
        write_summary(target.out, "cache", encoded, seconds, peak_memory(), **counts)
    return finished


def _begin(
    config: CacheCommand, data: Dataset, encoder: Encoder, target: Target
) -> Manifest | None:
    room = bytes_of_sample(
        config.encoding, target.buckets, encoder.autoencoder, encoder.text_encoder
    )
    return begin_dataset(target.out, target.settings, data.manifest.samples * room)


class _Pipeline:
    """Shards that are read, encoded and written at the same time."""

    def __init__(
        self,
        config: CacheCommand,
        data: Dataset,
        encoder: Encoder,
        targets: Sequence[Target],
        ranks: Ranks,
    ) -> None:
        self.config, self.data, self.encoder = config, data, encoder
        self.targets = targets
        self.sizes = [target.buckets for target in targets]
        total = len(data.manifest.shards)
        # Neighbours, so that batches may fill across their borders.
        first, last = (total * (ranks.rank + i) // ranks.world_size for i in (0, 1))
        self.own = range(first, last)
        self.waited = 0.0
        self.entries = [finished_shards(target.out, target.names) for target in targets]

    def run(self) -> int:
        """Makes this rank's shards that nobody has made; gives the samples encoded now."""
        shards = self.data.manifest.shards
        total = sum(shards[number].samples for number in self.own)
        stores_ids = self.config.encoding.text is TextStore.ids
        assembler = Assembler(self.encoder, self.targets, stores_ids)
        encoded = 0
        shown = os.environ.get("LOCAL_RANK", "0") == "0"  # of several ranks on a screen one speaks
        with (
            progress("cache", total, shown=shown) as meter,
            ThreadPoolExecutor(1, "write") as writer,
        ):
            self._check()
            writing: list[Future[list[ShardEntry]]] = []
            try:
                for work in self._encoded(assembler, meter):
                    encoded += len(work.samples)
                    self._take_in(writing)  # one is written at a time, and one waits
                    task = (self.config, self.encoder, self.targets, work)
                    writing.append(writer.submit(write_shard, *task))
            finally:  # what is encoded is kept, whatever happened to the next
                self._take_in(writing)
        return encoded

    def _encoded(self, assembler: Assembler, meter: Meter) -> Iterator[ShardWork]:
        shards = self.data.manifest.shards
        asked = time.perf_counter()
        for shard, found in read_ahead(self._jobs(meter), self.config.data.threads):
            self.waited += time.perf_counter() - asked
            yield from assembler.add(shard, shards[shard].samples, found)
            meter.advance(len(found))
            asked = time.perf_counter()
        yield from assembler.finish()

    def _jobs(self, meter: Meter) -> Iterator[Callable[[], tuple[int, list]]]:
        for number in self._due(meter):
            samples = self.data.manifest.shards[number].samples
            for first in range(0, max(samples, 1), ROWS_AT_ONCE):  # an empty shard is one too
                rows = range(first, min(first + ROWS_AT_ONCE, samples))
                yield partial(read_rows, self.data, self.sizes, self.config.encoding, number, rows)

    def _due(self, meter: Meter) -> Iterator[int]:
        """Shards to be made; those that another process has begun come last.

        That one may be dead. If it is not, whoever is first has made the shard.
        """
        begun = []
        for number in self.own:
            if self._finished(number):
                meter.advance(self.data.manifest.shards[number].samples)
            elif take_shard(self.targets[0].out, self.targets[0].names[number]):
                yield number
            else:
                begun.append(number)
        for number in begun:
            for target, entries in zip(self.targets, self.entries, strict=True):
                name = target.names[number]
                if name not in entries and (entry := finished_shard(target.out, name)):
                    entries[name] = entry
            if self._finished(number):
                meter.advance(self.data.manifest.shards[number].samples)
            else:
                yield number

    def _finished(self, number: int) -> bool:
        pairs = zip(self.targets, self.entries, strict=True)
        return all(target.names[number] in entries for target, entries in pairs)

    def _take_in(self, writing: list[Future[list[ShardEntry]]]) -> None:
        """Wait for what is being written, and stop when too many images are bad."""
        while writing:
            for target, entries, entry in zip(
                self.targets, self.entries, writing.pop(0).result(), strict=True
            ):
                name = entry.shard.name
                entries[name.rsplit("-", 1)[0]] = entry
                assert name.startswith(tuple(target.names)), name
            self._check()

    def _check(self) -> None:
        entries = self.entries[0].values()
        skipped = skipped_of(entry.extra for entry in entries)
        check_budget(skipped, self.data.manifest.samples, self.config.max_bad_share)
