"""Reading any sample by shard and row, checked down from the manifest.

Local shards are mapped. Remote ones come whole, through a local cache or into memory, or as ranged
reads of samples. Whichever way bytes come, each member is held to the CRC-32 of an index that
the manifest pins, at every read.
"""

import mmap
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from data.local_cache import LocalCache
from data.manifest import MAX_INDEX_BYTES, Manifest, load_manifest, sha256
from data.ranges import Span, read_spans, read_whole
from data.sample import RawSample
from data.storage import Prefix, open_prefix
from data.tar import Column, CorruptShard, Member, key_of, parse_index

T = TypeVar("T")
OPEN_SHARDS = 64


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class OpenShard:
    """Where the members of a shard's samples are, and its tar if that is mapped.

    Args:
        places: Offset, length (-1: none) and CRC-32 of each member, (samples, 3, members).
        content: The whole tar, mapped or in memory; None if it is read range by range.
    """

    places: NDArray[np.int64]
    content: memoryview | None


class Dataset:
    """A dataset that can be read. Safe to use from several threads.

    Args:
        prefix: Where it lies.
        manifest: Its manifest.
        cache: Where remote shards are kept whole; None reads ranges of them through memory.
        open_shards: How many shards are kept open.
        memory: Bytes that open shards may take in memory; if there is room for all of them, remote
            ones are read whole where there is no cache.
    """

    def __init__(
        self,
        prefix: Prefix,
        manifest: Manifest,
        cache: LocalCache | None = None,
        open_shards: int = OPEN_SHARDS,
        memory: int = 0,
    ) -> None:
        self.prefix = prefix
        self.manifest = manifest
        self.cache = cache
        # Buckets drift apart: each walks through the shards by its own samples.
        open_shards *= max(1, len(manifest.buckets))
        largest = max((shard.bytes for shard in manifest.shards), default=0)
        self.whole = memory >= largest * min(open_shards, len(manifest.shards))
        self._opening: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)
        self._alive: WeakValueDictionary[int, OpenShard] = WeakValueDictionary()
        self.shares_members = bool(manifest.settings.get("deduplicate"))
        self.tars = open_prefix(manifest.tars, prefix.setting) if manifest.tars else prefix
        self.index = lru_cache(maxsize=open_shards)(self._load_index)
        self.open_shard = lru_cache(maxsize=open_shards)(self._open_shard)
        self._rows = lru_cache(maxsize=open_shards)(self._rows_by_bucket)

    @property
    def by_request(self) -> bool:
        """Whether every sample is a request of its own."""
        return not (self.tars.local or self.cache or self.whole)

    def read(self, shard: int, row: int) -> RawSample:
        """One sample, whole.

        Args:
            shard: The shard's number in the manifest.
            row: The sample's row in the shard.

        Raises:
            CorruptShard: What lies there is not what was indexed.
        """

        def attempt() -> dict[str, bytes]:
            _, lengths, _ = self.open_shard(shard).places[row].tolist()
            numbers = [number for number, length in enumerate(lengths) if length >= 0]
            columns = self.columns([(shard, row)], numbers)
            named = zip(numbers, columns, strict=True)
            return {self.manifest.members[n]: column.member(0).copy() for n, column in named}

        members = twice(attempt, lambda: self.forget([shard]))
        entry = self.index(shard)[row]
        return RawSample(key_of(entry), members, int(entry["bucket"]))

    def columns(
        self, samples: Sequence[Sequence[int]], numbers: Sequence[int | Sequence[int]]
    ) -> list[Column]:
        """Members that every sample has, where they lie: unchecked views.

        Args:
            samples: Shard and row of each.
            numbers: Of the wanted members in the manifest; one for all samples, or one for each.

        Returns:
            A column for each number.

        Raises:
            CorruptShard: A file is missing, has another length, or is no index that fits, or a
                sample has not all of the members.
        """
        opened = [self.open_shard(shard) for shard, _ in samples]
        places = [one.places[row].tolist() for one, (_, row) in zip(opened, samples, strict=True)]
        wanted = [[one] * len(samples) if isinstance(one, int) else one for one in numbers]
        # Of members that samples share, what lies between a sample's first and last may be all.
        together = [[one] for one in wanted] if self.shares_members else [wanted]
        columns = []
        for some in together:
            windows, firsts = self._windows(samples, opened, places, some)
            columns += [self._column(samples, places, windows, firsts, one) for one in some]
        return columns

    def present(
        self, samples: Sequence[Sequence[int]], numbers: Sequence[int]
    ) -> NDArray[np.int64]:
        """How many of some members each sample has, the first ones always."""
        lengths = [self.open_shard(shard).places[row, 1, numbers] for shard, row in samples]
        counts: NDArray[np.int64] = np.sum(np.stack(lengths) >= 0, axis=1)
        return counts

    def name_of(self, shard: int, row: int, extension: str | None = None) -> str:
        """A sample, or a member of it, in words."""
        key = key_of(self.index(shard)[row])
        tar = self.manifest.shards[shard].tar
        return f"{self.tars.url}/{tar}: {key}" + (f".{extension}" if extension else "")

    def row(self, shard: int, bucket: int, nth: int) -> int:
        """The row of a shard's n-th sample of a bucket."""
        return int(self._rows(shard)[bucket][nth]) if len(self.manifest.buckets) > 1 else nth

    def rows_from(self, shard: int, row: int) -> Iterator[int]:
        """A row, and the others of its shard and bucket: those behind it, then those before."""
        yield row
        buckets = self.index(shard)["bucket"]
        rows = np.flatnonzero(buckets == buckets[row])
        yield from np.roll(rows, -int(np.searchsorted(rows, row)))[1:].tolist()

    def forget(self, shards: Iterable[int]) -> bool:
        """Have remote shards fetched anew; False if they are local files, read where they lie."""
        if self.tars.local:
            return False
        shards = list(shards)
        for record in map(self.manifest.shards.__getitem__, shards):
            if self.cache:
                self.cache.drop(self.tars, record.tar, record.sha256)
        damaged = set(shards)
        # By number, for other threads open shards meanwhile.
        numbers = (n for n in range(len(self.manifest.shards)) if n not in damaged)
        others = {n: one for n in numbers if (one := self._alive.get(n))}
        self.open_shard.cache_clear()
        for number in damaged:
            self._alive.pop(number, None)
        for number in others:  # found alive, not opened anew
            self.open_shard(number)
        return True

    def stop_waiting(self) -> None:
        """Have every read that waits for a store that is gone fail, from now on."""
        for prefix in (self.prefix, self.tars):
            prefix.patience.stop.set()

    def count_keys(self, keys: Collection[str]) -> int:
        """How many of the dataset's samples have one of these keys; reads the indexes alone."""
        wanted = np.array([key.encode() for key in keys])
        return sum(
            int(np.isin(self.index(shard)["key"], wanted).sum())
            for shard in range(len(self.manifest.shards))
        )

    def _column(
        self,
        samples: Sequence[Sequence[int]],
        places: list[Any],
        windows: list[memoryview],
        firsts: list[int],
        numbers: Sequence[int],
    ) -> Column:
        """A column out of windows of the tars, each of which begins at some byte."""
        starts = [
            offsets[number] - first
            for (offsets, _, _), first, number in zip(places, firsts, numbers, strict=True)
        ]
        lengths = [lengths[number] for (_, lengths, _), number in zip(places, numbers, strict=True)]
        if (shortest := min(lengths)) < 0:
            nth = lengths.index(shortest)
            extension = self.manifest.members[numbers[nth]]
            shard, row = samples[nth]
            raise CorruptShard(f"{self.name_of(shard, row)}: has no {extension}")
        crc32s = [crc32s[number] for (_, _, crc32s), number in zip(places, numbers, strict=True)]

        def member(nth: int) -> Member:
            start, length = starts[nth], lengths[nth]
            content = windows[nth][start : start + length]
            shard, row = samples[nth]
            where = self.name_of(shard, row, self.manifest.members[numbers[nth]])
            return Member(content, start + firsts[nth], length, crc32s[nth], where)

        return Column(windows, starts, lengths, crc32s, member)

    def _windows(
        self,
        samples: Sequence[Sequence[int]],
        opened: Sequence[OpenShard],
        places: list[Any],
        numbers: Sequence[Sequence[int]],
    ) -> tuple[list[memoryview], list[int]]:
        """For each sample bytes of its tar that hold its members, and where they begin.

        Of a tar that is not mapped it is the range from the first of the members to the last.
        """
        firsts, spans = [0] * len(samples), {}
        for i, one in enumerate(opened):
            if one.content is None:
                offsets, lengths, _ = places[i]
                there = [one[i] for one in numbers if lengths[one[i]] >= 0]
                firsts[i] = min((offsets[n] for n in there), default=0)
                end = max((offsets[n] + lengths[n] for n in there), default=0)
                tar = self.manifest.shards[samples[i][0]].tar
                spans[i] = Span(tar, firsts[i], end - firsts[i])
        fetched = dict(zip(spans, self._fetch(list(spans.values())), strict=True))
        windows = [
            fetched[i] if one.content is None else one.content for i, one in enumerate(opened)
        ]
        return windows, firsts

    def _fetch(self, spans: Sequence[Span]) -> list[memoryview]:
        try:
            return read_spans(self.tars, spans) if spans else []
        except FileNotFoundError:
            names = [span.name for span in spans]
            gone = [name for name in names if not self.tars.exists(name)]
            raise _missing(self.tars, (gone or names)[0]) from None

    def _open_shard(self, shard: int) -> OpenShard:
        with self._opening[shard]:  # threads that want one shard do not each fetch it
            opened = self._alive.get(shard)
            if opened is None:
                opened = self._alive[shard] = self._open_anew(shard)
            return opened

    def _open_anew(self, shard: int) -> OpenShard:
        index, record = self.index(shard), self.manifest.shards[shard]
        mapped: Any = None
        try:
            if self.tars.local:
                mapped = self._map(record.tar)
            elif self.cache:
                mapped = self.cache.open(self.tars, record.tar, record.bytes, record.sha256)
            elif self.whole:
                mapped = read_whole(self.tars, record.tar, record.bytes)
        except FileNotFoundError:
            raise _missing(self.tars, record.tar) from None
        if mapped is not None and len(mapped) != record.bytes:
            raise CorruptShard(
                f"{self.tars.url}/{record.tar}: has {len(mapped):,} bytes, "
                f"its manifest says {record.bytes:,}"
            )
        columns = [index[name].astype(np.int64) for name in ("offset", "length", "crc32")]
        return OpenShard(np.stack(columns, axis=1), None if mapped is None else memoryview(mapped))

    def _map(self, name: str) -> mmap.mmap | bytes:
        with self.tars.errors("read"):
            if not self.tars.require_plain(name):  # an empty file cannot be mapped
                return b""
            with Path(self.tars.path(name)).open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _load_index(self, shard: int) -> NDArray[np.void]:
        record = self.manifest.shards[shard]
        where = f"{self.prefix.url}/{record.index}"
        try:
            content = self.prefix.read(record.index, MAX_INDEX_BYTES)
        except FileNotFoundError:
            raise _missing(self.prefix, record.index) from None
        if sha256(content) != record.index_sha256:
            raise CorruptShard(f"{where}: is not the index that the manifest pins")
        try:
            return parse_index(content, len(self.manifest.members), record.buckets)
        except ValueError as error:
            raise CorruptShard(f"{where}: is no index that fits ({error})") from error

    def _rows_by_bucket(self, shard: int) -> list[NDArray[np.int64]]:
        buckets = self.index(shard)["bucket"]
        return [np.flatnonzero(buckets == bucket) for bucket in range(len(self.manifest.buckets))]


def twice(attempt: Callable[[], T], forget: Callable[[], bool]) -> T:
    """Run what reads members; once more after `forget` if they came damaged and that may help."""
    try:
        return attempt()
    except CorruptShard:
        if not forget():
            raise
    return attempt()


def open_dataset(
    url: str,
    kind: str,
    setting: str = "data.url",
    cache: LocalCache | None = None,
    open_shards: int = OPEN_SHARDS,
    memory: int = 0,
) -> Dataset:
    """Open a dataset of the wanted kind (`images`, `latents` or `any`).

    Raises:
        UserError: There is none at that URL, or it is of another kind.
    """
    prefix = open_prefix(url, setting)
    return Dataset(prefix, load_manifest(prefix, kind), cache, open_shards, memory)


def _missing(prefix: Prefix, name: str) -> CorruptShard:
    return CorruptShard(f"{prefix.url}/{name}: is missing")
