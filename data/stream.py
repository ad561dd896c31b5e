"""Reading any sample by shard and row, checked down from the manifest."""

import mmap
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.manifest import Manifest, load_manifest, sha256
from data.npy import parse_npy
from data.sample import RawSample
from data.storage import Prefix, open_prefix
from data.tar import CorruptShard, index_dtype, read_member

OPEN_SHARDS = 64


class Dataset:
    """A dataset that can be read. Safe to use from several threads.

    Args:
        prefix: Where it lies.
        manifest: Its manifest.
    """

    def __init__(self, prefix: Prefix, manifest: Manifest) -> None:
        self.prefix = prefix
        self.manifest = manifest
        self.index = lru_cache(maxsize=OPEN_SHARDS)(self._load_index)
        self._mapped = lru_cache(maxsize=OPEN_SHARDS)(self._map)

    def read(self, shard: int, row: int) -> RawSample:
        """One sample, in one range read.

        Args:
            shard: The shard's number in the manifest.
            row: The sample's row in the shard.

        Raises:
            CorruptShard: What lies there is not what was indexed.
        """
        entry = self.index(shard)[row]
        key = bytes(entry["key"]).decode()
        present = entry["length"] >= 0
        start = int(entry["offset"][present].min())
        end = int((entry["offset"] + entry["length"].clip(0))[present].max())
        window = self._window(shard, start, end)
        members = {}
        for column, extension in enumerate(self.manifest.members):
            where = f"{self.prefix.url}/{self.manifest.shards[shard].tar}: {key}.{extension}"
            content = read_member(window, start, entry, column, where)
            if content is not None:
                members[extension] = content
        return RawSample(key, members)

    def count_keys(self, keys: Collection[str]) -> int:
        """How many of the dataset's samples have one of these keys; reads the indexes alone."""
        wanted = np.array([key.encode() for key in keys])
        return sum(
            int(np.isin(self.index(shard)["key"], wanted).sum())
            for shard in range(len(self.manifest.shards))
        )

    def _window(self, shard: int, start: int, end: int) -> bytes:
        if self.prefix.local:
            return self._mapped(shard)[start:end]
        name = self.manifest.shards[shard].tar
        try:
            return self.prefix.read_range(name, start, end - start)
        except FileNotFoundError:
            raise self._missing(name) from None

    def _map(self, shard: int) -> mmap.mmap | bytes:
        name = self.manifest.shards[shard].tar
        try:
            with self.prefix.errors("read"), Path(self.prefix.path(name)).open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise self._missing(name) from None
        except ValueError:  # an empty file cannot be mapped; reading from it finds what is missing
            return b""

    def _load_index(self, shard: int) -> NDArray[np.void]:
        record = self.manifest.shards[shard]
        try:
            content = self.prefix.read(record.index)
        except FileNotFoundError:
            raise self._missing(record.index) from None
        where = f"{self.prefix.url}/{record.index}"
        if sha256(content) != record.index_sha256:
            raise CorruptShard(f"{where}: is not the index that the manifest pins")
        try:
            index = parse_npy(content)
            key_bytes = index.dtype["key"].itemsize
        except (ValueError, KeyError) as error:
            raise CorruptShard(f"{where}: is no index ({error})") from error
        if (
            index.dtype != index_dtype(key_bytes, len(self.manifest.members))
            or len(index) != record.samples
        ):
            raise CorruptShard(f"{where}: does not fit the manifest")
        return index

    def _missing(self, name: str) -> CorruptShard:
        return CorruptShard(f"{self.prefix.url}/{name}: is missing")


def open_dataset(url: str, kind: str, setting: str = "data.url") -> Dataset:
    """Open a dataset of the wanted kind (`images`, `latents` or `any`).

    Raises:
        UserError: There is none at that URL, or it is of another kind.
    """
    prefix = open_prefix(url, setting)
    return Dataset(prefix, load_manifest(prefix, kind))
