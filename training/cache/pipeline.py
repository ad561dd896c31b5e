"""A rank's shards, read, encoded and written at the same time, and any of them by whoever is first.

Reading and decoding run on threads, encoding on this one, and writing on one more: a shard is
written while the next is encoded.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from conf.enums import TextStore
from conf.schema import CacheCommand
from data.addressed import take_shard, whole_shards
from data.loader import read_ahead
from data.progress import Meter, progress
from data.ranks import Ranks, local_rank
from data.shard import ShardEntry, finished_shard
from data.sift import check_budget, skipped_of
from data.stream import Dataset
from training.cache.assemble import Assembler, ShardWork
from training.cache.plan import Target
from training.cache.read import ROWS_AT_ONCE, Found, Undecodable, read_rows
from training.cache.write import write_shard
from training.encode import Encoder


class Pipeline:
    """Shards that are read, encoded and written at the same time.

    Args:
        config: The command's.
        data: The dataset of images.
        encoder: What encodes.
        targets: What is made of it.
        ranks: Which part is this process's.

    Attributes:
        waited: Seconds in which the encoder had nothing to do.
    """

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
        names = [[target.names[number] for number in self.own] for target in targets]
        pairs = zip(targets, names, strict=True)
        self.entries = [whole_shards(target.out, own) for target, own in pairs]
        # Of finished shards, and of what is read from now on.
        self.skipped = skipped_of(entry.extra for entry in self.entries[0].values())

    def run(self) -> int:
        """Makes this rank's shards that nobody has made; gives the samples encoded now."""
        shards = self.data.manifest.shards
        total = sum(shards[number].samples for number in self.own)
        stores_ids = self.config.encoding.text is TextStore.ids
        assembler = Assembler(self.encoder, self.targets, stores_ids)
        encoded = 0
        with (
            # Of several ranks on a screen one speaks.
            progress("cache", total, shown=local_rank() == 0) as meter,
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
            if bad := [one for one in found if isinstance(one, Undecodable)]:
                self._check(bad)
            yield from assembler.add(shard, shards[shard].samples, found)
            meter.advance(len(found))
            asked = time.perf_counter()
        yield from assembler.finish()

    def _jobs(self, meter: Meter) -> Iterator[Callable[[], Found]]:
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
            for entries, entry in zip(self.entries, writing.pop(0).result(), strict=True):
                entries[entry.shard.name.rpartition("-")[0]] = entry

    def _check(self, more: Sequence[Undecodable] = ()) -> None:
        """Stop when too many samples are bad, before more of them are encoded."""
        self.skipped.bad += [one.record() for one in more]
        check_budget(self.skipped, self.data.manifest.samples, self.config.max_bad_share)
