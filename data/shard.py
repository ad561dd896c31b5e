"""Datasets are made here, shard by shard, raw and latent alike.

Each shard appears whole, an interrupted command takes up where it was, and an `out` that holds
something else is refused.
"""

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.errors import UserError
from data import manifest
from data.claim import claim
from data.manifest import (
    Manifest,
    Shard,
    canonical_json,
    parse_record,
    parse_shard,
    read_manifest,
    sha256,
)
from data.sample import RawSample
from data.storage import Prefix
from data.tar import index_tar, write_tar

ENTRIES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A finished shard and what its maker remembers of it, JSON-ready."""

    shard: Shard
    extra: dict[str, Any]

    def to_json(self) -> bytes:
        """The file as it is stored."""
        return canonical_json({"shard": asdict(self.shard), "extra": self.extra})


def begin_dataset(
    out: Prefix, settings: dict[str, Any], num_bytes: int = 0, shared: bool = False
) -> Manifest | None:
    """Claim a prefix for the dataset that `settings` describe.

    Args:
        out: Where it is to be.
        settings: All that decides its content, JSON-ready.
        num_bytes: Room that it will take.
        shared: Whether files of others may lie there.

    Returns:
        Its manifest if it is finished already, else None.

    Raises:
        UserError: The prefix holds, finished or not, another dataset, or cannot be written.
    """
    try:
        there = read_manifest(out)
    except FileNotFoundError:
        there = None
    if there and there.identity == sha256(canonical_json(settings)):
        return there
    out.require_writable(num_bytes)
    claim(out, settings, shared)
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
    tar = TarFile(f"shards/{name}.tar", len(content), sha256(content))
    if len(index):  # a shard of which nothing is left is not listed in the manifest
        out.write(tar.name, content)
    return commit_index(out, name, tar, index, num_buckets, **extra)


@dataclass(frozen=True, slots=True)
class TarFile:
    """A tar that is written whole: its name, and its bytes and their SHA-256."""

    name: str
    bytes: int
    sha256: str


def commit_index(
    out: Prefix, name: str, tar: TarFile, index: NDArray[np.void], num_buckets: int, **extra: Any
) -> ShardEntry:
    """Write the index of a tar that is there and, last, the entry that says that both are whole."""
    shard, content = describe(name, tar, index, num_buckets)
    if len(index):
        out.write(shard.index, content)
    entry = ShardEntry(shard, extra)
    out.write(entry_name(name), entry.to_json())
    return entry


def describe(
    name: str, tar: TarFile, index: NDArray[np.void], num_buckets: int
) -> tuple[Shard, bytes]:
    """A shard's record, and the bytes of its index."""
    buffer = io.BytesIO()
    np.save(buffer, index, allow_pickle=False)
    buckets = tuple(np.bincount(index["bucket"], minlength=num_buckets).tolist())
    hashed = sha256(buffer.getvalue())
    return Shard(name, tar.name, buckets, tar.bytes, tar.sha256, hashed), buffer.getvalue()


def finished_shard(out: Prefix, name: str) -> ShardEntry | None:
    """The entry of a shard that an earlier process finished, or None.

    Raises:
        UserError: It is damaged.
    """
    try:
        content = out.read(entry_name(name))
    except FileNotFoundError:
        return None
    where, remedy = f"{out.url}/{entry_name(name)}", "remove it, and run again"
    raw = parse_record(content, where, remedy)
    try:
        return ShardEntry(parse_shard(raw["shard"]), raw["extra"])
    except (KeyError, TypeError) as error:
        raise UserError(where, f"is damaged ({error})", remedy) from error


def finished_shards(out: Prefix, names: Sequence[str]) -> dict[str, ShardEntry]:
    """The entries of those shards that are finished, by name."""
    there = set(out.names("index"))
    names = [name for name in names if f"{name}.json" in there]
    with ThreadPoolExecutor(ENTRIES_AT_ONCE) as pool:
        entries = zip(names, pool.map(lambda name: finished_shard(out, name), names), strict=True)
        return {name: entry for name, entry in entries if entry}


def forget_shards(out: Prefix, names: Sequence[str]) -> None:
    """Take back indexes and entries of shards, so that they count as not begun."""
    there = set(out.names("index"))
    for name in names:
        for extension in ("json", "npy"):
            if f"{name}.{extension}" in there:
                out.remove(f"index/{name}.{extension}")
    if not out.names("index"):
        out.remove("index")


def commit_dataset(out: Prefix, finished: Manifest) -> None:
    """Write the manifest: from here on the dataset exists."""
    try:
        out.create(manifest.NAME, finished.to_json())
    except FileExistsError:
        there = read_manifest(out)
        if there.fingerprint != finished.fingerprint:
            raise UserError(
                f"out={out.url}",
                "was finished by another process with other content",
                "choose another out",
            ) from None


def shard_names(samples: int, shard_samples: int) -> list[str]:
    """Names of the shards that `samples` make, numbered from 0."""
    return [f"{i:05d}" for i in range(-(-samples // shard_samples))]


def entry_name(name: str) -> str:
    """The file that says that a shard is finished."""
    return f"index/{name}.json"
