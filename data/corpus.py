"""What a training reads: one dataset or several, bucket by bucket, in an order known by place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from conf.errors import UserError
from conf.groups import DataConfig
from data.agree import differences, means_latents
from data.draw import Choices, drawn
from data.local_cache import LocalCache
from data.mixture import Mixture, Sequenced
from data.order import Order, hashes
from data.stream import OPEN_SHARDS, Dataset, open_dataset, twice
from data.tar import Column, Member

T = TypeVar("T")
# Blocks whose shards are kept open: the one that is read, the next, and one more, for the buckets
# of a dataset do not meet the borders of their blocks at the same time.
OPEN_BLOCKS = 3


class Sample(NamedTuple):
    """Where a sample lies: numbers of its dataset, of the shard in it, and of the row in that."""

    dataset: int
    shard: int
    row: int


@dataclass(frozen=True, slots=True)
class Part:
    """The samples of one dataset that are in one bucket; its order numbers shards from `first`."""

    dataset: int
    bucket: int
    first: int
    counts: Sequence[int]

    @property
    def samples(self) -> int:
        """Over all shards."""
        return sum(self.counts)


class Corpus:
    """Datasets that are read as one, in an endless order.

    Every batch is of one bucket, so that its images or latents have one size. Within a bucket,
    datasets take turns by weight, sample by sample. Each part, a dataset's samples of a bucket, is
    read in an order of its own, every sample once before any comes again.

    Args:
        datasets: Of one kind. What their numbers mean is the first one's.
        weights: Shares of samples drawn from each; None is by size, as if they were one dataset.
        seed: Of all permutations.
        block_shards: Shards of a part that are shuffled together.
        batch_size: Samples of a global batch.

    Attributes:
        look_every: After how many places `shards_ahead` is to be asked again.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        weights: Sequence[float] | None,
        seed: int,
        block_shards: int,
        batch_size: int,
    ) -> None:
        self.datasets = tuple(datasets)
        self.seed = seed
        self.parts = parts_of(datasets)
        self._firsts = np.array([part.first for part in self.parts])
        self._datasets = np.array([part.dataset for part in self.parts])
        self._buckets = np.array([part.bucket for part in self.parts])
        sizes = [dataset.manifest.samples for dataset in datasets]
        shares = weights or sizes
        by_bucket: dict[tuple[int, int], list[tuple[Sequenced, float]]] = {}
        for part in self.parts:
            bucket = datasets[part.dataset].manifest.buckets[part.bucket]
            # Parts of one dataset share a seed, so that they open the same shards.
            order = Order(part.counts, derived(seed, part.dataset), block_shards, part.first)
            share = shares[part.dataset] * part.samples / sizes[part.dataset]
            by_bucket.setdefault(bucket, []).append((order, share))
        # Who looks ahead sees this block and the next: half a block later it is time to look again.
        blocks = (part.samples * block_shards // len(part.counts) for part in self.parts)
        self.look_every = max(1, min(blocks) // 2)
        turns, turns_of_buckets = derived(seed, len(datasets)), derived(seed, len(datasets) + 1)
        buckets = [(mixed(parts, turns, 1), _total(parts)) for parts in by_bucket.values()]
        self.order = mixed(buckets, turns_of_buckets, batch_size)

    @property
    def main(self) -> Dataset:
        """The dataset that says what the numbers mean."""
        return self.datasets[0]

    @property
    def by_request(self) -> bool:
        """Whether samples of a remote dataset are read one by one."""
        return any(one.by_request for one in self.datasets)

    @property
    def samples(self) -> int:
        """Over all datasets."""
        return sum(dataset.manifest.samples for dataset in self.datasets)

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """Height and width in pixels of every bucket that has samples, without repetition."""
        found = [self.datasets[part.dataset].manifest.buckets[part.bucket] for part in self.parts]
        return list(dict.fromkeys(found))

    def locate(self, places: range) -> list[Sample]:
        """The samples at places of the order."""
        return [Sample(*numbers) for numbers in self._numbers(places).tolist()]

    def bucket_at(self, place: int) -> tuple[int, int]:
        """Height and width in pixels of the batch at a place."""
        part = self._part(int(self.order.samples(place, place + 1)[0, 0]))
        return self.datasets[part.dataset].manifest.buckets[part.bucket]

    def checked(
        self, places: range, extensions: Sequence[Choices], take: Callable[[list[Column]], T]
    ) -> T:
        """Give members of the samples at some places to `take`, which checks what it copies.

        Of several extensions each place draws one that its sample has; the same draw gives a place
        the same number everywhere.

        Raises:
            CorruptShard: One has no such member, or fresh reads gave damaged bytes too.
        """
        samples = self._numbers(places)
        return twice(
            lambda: take(self._columns(samples, places, extensions)),
            lambda: self._forget(samples),
        )

    def _numbers(self, places: range) -> NDArray[np.int64]:
        """Dataset, shard and row at places of the order, (B, 3)."""
        samples = np.empty((len(places), 3), dtype=np.int64)
        samples[:, 1:] = self.order.samples(places.start, places.stop)
        parts = np.searchsorted(self._firsts, samples[:, 1], side="right") - 1
        samples[:, 0] = self._datasets[parts]
        samples[:, 1] -= self._firsts[parts]
        if len(self.parts) > len(self.datasets):  # rows were counted within their buckets
            buckets = self._buckets[parts].tolist()
            for sample, bucket in zip(samples, buckets, strict=True):
                dataset, shard, nth = sample.tolist()
                sample[2] = self.datasets[dataset].row(shard, bucket, nth)
        return samples

    def _columns(
        self, samples: NDArray[np.int64], places: range, extensions: Sequence[Choices]
    ) -> list[Column]:
        """The members of samples, by extension; each dataset is asked once for all of its own."""
        parts: list[tuple[list[int], list[Column]]] = []
        datasets = samples[:, 0].tolist()
        for number in set(datasets):
            dataset = self.datasets[number]
            here = [i for i, one in enumerate(datasets) if one == number]
            rows = samples[here, 1:].tolist()
            at = [places[i] for i in here]
            numbers = [self._drawn(dataset, rows, at, names) for names in extensions]
            parts.append((here, dataset.columns(rows, numbers)))
        if len(parts) == 1:
            return parts[0][1]
        return [
            _woven([(here, columns[i]) for here, columns in parts]) for i in range(len(extensions))
        ]

    def _drawn(
        self, dataset: Dataset, rows: list[list[int]], places: list[int], choices: Choices
    ) -> int | list[int]:
        """The number of the member that each place reads."""
        members = [dataset.manifest.members.index(name) for name in choices.names]
        if len(members) == 1:
            return members[0]
        counts = dataset.present(rows, members)
        draws = drawn(self.seed, np.array(places), choices.draw, counts)
        return [members[draw] for draw in draws.tolist()]

    def stop_waiting(self) -> None:
        """Have every read that waits for a store that is gone fail, from now on."""
        for dataset in self.datasets:
            dataset.stop_waiting()

    def shards_ahead(self, place: int) -> list[tuple[int, int]]:
        """Dataset and shard of what is read at `place` and soon after, in the order of need."""
        found = []
        for number in self.order.shards_ahead(place):
            part = self._part(number)
            found.append((part.dataset, number - part.first))
        return list(dict.fromkeys(found))

    def _part(self, number: int) -> Part:
        return self.parts[int(np.searchsorted(self._firsts, number, side="right")) - 1]

    def _forget(self, samples: NDArray[np.int64]) -> bool:
        by_dataset: dict[int, set[int]] = {}
        for dataset, shard, _ in samples.tolist():
            by_dataset.setdefault(dataset, set()).add(shard)
        return any([self.datasets[number].forget(shards) for number, shards in by_dataset.items()])


def _woven(parts: Sequence[tuple[list[int], Column]]) -> Column:
    """One column of several, each with the places that its members have in it."""
    source = {i: (column, nth) for here, column in parts for nth, i in enumerate(here)}
    pairs = [source[i] for i in range(len(source))]

    def member(nth: int) -> Member:
        column, place = pairs[nth]
        return column.member(place)

    return Column(
        [column.windows[nth] for column, nth in pairs],
        [column.starts[nth] for column, nth in pairs],
        [column.lengths[nth] for column, nth in pairs],
        [column.crc32s[nth] for column, nth in pairs],
        member,
    )


def parts_of(datasets: Sequence[Dataset]) -> list[Part]:
    """The parts that have samples; each numbers its shards after those of the parts before it."""
    parts, first = [], 0
    for number, dataset in enumerate(datasets):
        shards = dataset.manifest.shards
        for bucket in range(len(dataset.manifest.buckets)):
            counts = [shard.buckets[bucket] for shard in shards]
            if any(counts):
                parts.append(Part(number, bucket, first, counts))
                first += len(shards)
    return parts


def derived(seed: int, number: int) -> int:
    """A seed for each number; that of 0 is the seed itself."""
    return int(hashes(1, seed, number)[0]) if number else seed


def mixed(parts: Sequence[tuple[Sequenced, float]], seed: int, unit: int) -> Sequenced:
    """A mixture by weight, or the part itself if there is one."""
    if len(parts) == 1:
        return parts[0][0]
    return Mixture([part for part, _ in parts], [weight for _, weight in parts], seed, unit)


def open_corpus(config: DataConfig, kind: str, batch_size: int, world_size: int = 1) -> Corpus:
    """Open what a configuration names.

    One rank alone needs every byte of the shards and may hold them in memory. One of several needs
    a part, and what it does not have to fetch whole for itself it reads by the sample.

    Raises:
        UserError: A dataset is not there, of another kind, or empty, or does not go with the first.
    """
    cache = None
    if config.local_cache:
        cache = LocalCache(Path(config.local_cache), int(config.local_cache_gb * 1e9))
    settings = {config.url: "data.url"} | dict.fromkeys(config.also, "data.also")
    memory = 0 if world_size > 1 else int(config.memory_gb * 1e9) // len(settings)
    # In memory no more than is needed; maps cost nothing.
    most = OPEN_BLOCKS * config.block_shards
    if not memory or cache:
        most = max(OPEN_SHARDS, most)
    datasets = [
        open_dataset(url, kind, setting, cache, most, memory) for url, setting in settings.items()
    ]
    for dataset in datasets:
        where = f"{dataset.prefix.setting}={dataset.prefix.url}"
        if not dataset.manifest.samples:
            raise UserError(where, "has no samples", "give a dataset that has some")
        if kind == "latents" and not means_latents(dataset.manifest):
            remedy = "make it again with `ldm cache`"
            raise UserError(where, "does not say what its latents and texts mean", remedy)
        for wrong in differences(datasets[0].manifest, dataset.manifest):
            raise UserError(
                where, f"has {wrong} than data.url", "mix what one `ldm cache` setting has made"
            )
    return Corpus(datasets, config.weights, config.seed, config.block_shards, batch_size)


def _total(parts: Sequence[tuple[Sequenced, float]]) -> float:
    return sum(weight for _, weight in parts)
