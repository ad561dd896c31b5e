"""Reading any sample by shard and row, checked down from the manifest.

Local shards are mapped. Remote ones come whole through a local cache, if there is one, or as ranged
reads through memory. Whichever way bytes come, each member is held to the CRC-32 of an index that
the manifest pins, at every read.
"""

import mmap
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.local_cache import LocalCache
from data.manifest import Manifest, load_manifest, sha256
from data.ranges import Span, read_spans
from data.sample import RawSample
from data.storage import Prefix, open_prefix
from data.tar import CorruptShard, Member, parse_index

T = TypeVar("T")
OPEN_SHARDS = 64


@dataclass(frozen=True, slots=True)
class OpenShard:
    """The columns of a shard's index, each (samples, members), and its tar where that is mapped.

    Args:
        offset: Of each member in the tar.
        length: Of each member in bytes; -1 where a sample has none.
        crc32: Of each member.
        content: The whole tar, or None if it is read range by range.
    """

    offset: NDArray[np.uint64]
    length: NDArray[np.int64]
    crc32: NDArray[np.uint32]
    content: NDArray[np.uint8] | None


class Dataset:
    """A dataset that can be read. Safe to use from several threads.

    Args:
        prefix: Where it lies.
        manifest: Its manifest.
        cache: Where remote shards are kept whole; None reads ranges of them through memory.
        open_shards: How many shards are kept open.
    """

    def __init__(
        self,
        prefix: Prefix,
        manifest: Manifest,
        cache: LocalCache | None = None,
        open_shards: int = OPEN_SHARDS,
    ) -> None:
        self.prefix = prefix
        self.manifest = manifest
        self.cache = cache
        self.tars = open_prefix(manifest.tars, prefix.setting) if manifest.tars else prefix
        self.index = lru_cache(maxsize=open_shards)(self._load_index)
        self.open_shard = lru_cache(maxsize=open_shards)(self._open_shard)
        self._rows = lru_cache(maxsize=open_shards)(self._rows_by_bucket)

    def read(self, shard: int, row: int) -> RawSample:
        """One sample, whole.

        Args:
            shard: The shard's number in the manifest.
            row: The sample's row in the shard.

        Raises:
            CorruptShard: What lies there is not what was indexed.
        """
        columns = range(len(self.manifest.members))

        def attempt() -> dict[str, bytes]:
            (found,) = self.members([(shard, row)], columns)
            named = zip(self.manifest.members, found, strict=True)
            return {name: member.copy() for name, member in named if member}

        members = twice(attempt, lambda: self.forget([shard]))
        entry = self.index(shard)[row]
        return RawSample(bytes(entry["key"]).decode(), members, int(entry["bucket"]))

    def members(
        self, samples: Sequence[tuple[int, int]], columns: Sequence[int]
    ) -> list[list[Member | None]]:
        """Members of samples where they lie: unchecked views.

        Args:
            samples: Shard and row of each.
            columns: Numbers of the wanted members in the manifest.

        Returns:
            For each sample its members in the order of `columns`; None for one that it has not.

        Raises:
            CorruptShard: A file is missing, has another length, or is no index that fits.
        """
        opened = [self.open_shard(shard) for shard, _ in samples]
        remote = [i for i, shard in enumerate(opened) if shard.content is None]
        fetched = self._fetch([(*samples[i], opened[i]) for i in remote], columns)
        windows = dict(zip(remote, fetched, strict=True))
        found = []
        for i, sample in enumerate(samples):
            window, start = windows.get(i) or (opened[i].content, 0)
            found.append([self._member(window, start, opened[i], sample, c) for c in columns])
        return found

    def name_of(self, shard: int, row: int, extension: str | None = None) -> str:
        """A sample, or a member of it, in words."""
        key = self.index(shard)["key"][row].decode()
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
        for record in map(self.manifest.shards.__getitem__, shards):
            if self.cache:
                self.cache.drop(self.tars, record.tar, record.sha256)
        self.open_shard.cache_clear()
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

    def _member(
        self, window: Any, start: int, opened: OpenShard, sample: tuple[int, int], column: int
    ) -> Member | None:
        """A member out of a window of its tar, which begins at byte `start`."""
        row = sample[1]
        offset, length = opened.offset.item(row, column), opened.length.item(row, column)
        if length < 0:
            return None
        content = window[offset - start : offset - start + length]
        where = partial(self.name_of, *sample, self.manifest.members[column])
        return Member(content, offset, length, opened.crc32.item(row, column), where)

    def _fetch(
        self, samples: Sequence[tuple[int, int, OpenShard]], columns: Sequence[int]
    ) -> list[tuple[NDArray[np.uint8], int]]:
        """For samples of shards that are not mapped, the range that holds their members."""
        spans = []
        for shard, row, opened in samples:
            offsets, lengths = opened.offset[row].tolist(), opened.length[row].tolist()
            there = [(offsets[c], lengths[c]) for c in columns if lengths[c] >= 0]
            start = min((offset for offset, _ in there), default=0)
            end = max((offset + length for offset, length in there), default=0)
            spans.append(Span(self.manifest.shards[shard].tar, start, end - start))
        try:
            windows = read_spans(self.tars, spans) if spans else []
        except FileNotFoundError:
            names = [span.name for span in spans]
            gone = [name for name in names if not self.tars.exists(name)]
            raise _missing(self.tars, (gone or names)[0]) from None
        return [
            (np.frombuffer(window, np.uint8), span.start)
            for window, span in zip(windows, spans, strict=True)
        ]

    def _open_shard(self, shard: int) -> OpenShard:
        index, record = self.index(shard), self.manifest.shards[shard]
        mapped: Any = None
        try:
            if self.tars.local:
                mapped = self._map(record.tar)
            elif self.cache:
                mapped = self.cache.open(self.tars, record.tar, record.bytes, record.sha256)
        except FileNotFoundError:
            raise _missing(self.tars, record.tar) from None
        if mapped is not None and len(mapped) != record.bytes:
            raise CorruptShard(
                f"{self.tars.url}/{record.tar}: has {len(mapped):,} bytes, "
                f"its manifest says {record.bytes:,}"
            )
        content = None if mapped is None else np.frombuffer(mapped, np.uint8)
        return OpenShard(index["offset"], index["length"], index["crc32"], content)

    def _map(self, name: str) -> mmap.mmap | bytes:
        with self.tars.errors("read"), Path(self.tars.path(name)).open("rb") as file:
            try:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:  # an empty file cannot be mapped
                return b""

    def _load_index(self, shard: int) -> NDArray[np.void]:
        record = self.manifest.shards[shard]
        where = f"{self.prefix.url}/{record.index}"
        try:
            content = self.prefix.read(record.index)
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
) -> Dataset:
    """Open a dataset of the wanted kind (`images`, `latents` or `any`).

    Raises:
        UserError: There is none at that URL, or it is of another kind.
    """
    prefix = open_prefix(url, setting)
    return Dataset(prefix, load_manifest(prefix, kind), cache, open_shards)


def _missing(prefix: Prefix, name: str) -> CorruptShard:
    return CorruptShard(f"{prefix.url}/{name}: is missing")
