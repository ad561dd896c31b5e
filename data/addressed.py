"""Shards that are named by what went into them: whoever finishes one first has made it for all.

Any number of processes may make the same shard at the same time, even with other bits, as a CPU and
a GPU give: files are named by their content too, none is ever overwritten, and the entry, which is
created only if there is none, says which ones count.
"""

import contextlib
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.errors import RunError, UserError
from data.manifest import Manifest, canonical_json, sha256
from data.sample import RawSample
from data.say import say
from data.shard import (
    ShardEntry,
    TarFile,
    describe,
    entry_name,
    finished_shard,
    finished_shards,
)
from data.storage import Prefix
from data.tar import index_tar, write_tar

CLAIMS = "claims"
HASH_DIGITS = 16  # of a SHA-256 in a name


def address(number: int, inputs: dict[str, Any]) -> str:
    """The name of the shard at a place of its dataset, by all that goes into it, JSON-ready."""
    return f"{number:05d}-{sha256(canonical_json(inputs))[:HASH_DIGITS]}"


def take_shard(out: Prefix, name: str) -> bool:
    """Say that this process is at work on a shard; False if another has said so before.

    Only a hint: whose process died has its shards made by whoever finds nothing else to do.
    """
    who = f"{socket.gethostname()} {os.getpid()}\n".encode()
    with contextlib.suppress(FileExistsError):
        out.create(f"{CLAIMS}/{name}", who)
        return True
    return False


def create_shard(
    out: Prefix,
    name: str,
    samples: Iterable[RawSample],
    members: tuple[str, ...],
    num_buckets: int,
    deduplicate: tuple[str, ...] = (),
    **extra: Any,
) -> ShardEntry:
    """Write a shard, its index and, last, the entry that says that both are whole.

    Args:
        out: The dataset.
        name: As `address` gives it.
        samples: Its samples.
        members: The extensions to index, in the manifest's order.
        num_buckets: Of the dataset.
        deduplicate: Extensions of members that are stored once where their bytes are the same.
        extra: What its maker wants to remember of it, JSON-ready.

    Returns:
        The entry that counts: this one, or that of whoever was first.
    """
    samples = list(samples)
    content, index = _tar_and_index(samples, members, name, deduplicate)
    digest = sha256(content)
    full = f"{name}-{digest[:HASH_DIGITS]}"
    tar = TarFile(f"shards/{full}.tar", len(content), digest)
    shard, index_content = describe(full, tar, index, num_buckets)
    mine = ShardEntry(shard, extra)
    files = {shard.tar: content, shard.index: index_content} if samples else {}
    for file, written in files.items():
        with contextlib.suppress(FileExistsError):  # with the same content, or by an earlier try
            out.create(file, written)
    try:
        out.create(entry_name(name), mine.to_json())
        return mine
    except FileExistsError:
        first = finished_shard(out, name)
    if first is None:
        raise UserError(
            f"out={out.url}", f"lost {entry_name(name)} while it was in use", "run again"
        ) from None
    if first.shard != shard:
        for file in files:
            out.remove(file)
    return first


def whole_shards(out: Prefix, names: Sequence[str]) -> dict[str, ShardEntry]:
    """The entries of finished shards, by name; those whose files are gone are taken back."""
    entries = finished_shards(out, names)
    there = {f"{folder}/{name}" for folder in ("shards", "index") for name in out.names(folder)}
    for name, entry in list(entries.items()):
        files = {entry.shard.tar, entry.shard.index} if entry.shard.samples else set()
        if lost := files - there:
            say(f"{out.url}: {min(lost)} is gone, so its shard is made again")
            out.remove(entry_name(name))
            del entries[name]
    return entries


def require_whole(out: Prefix, finished: Manifest) -> None:
    """Refuse a finished dataset whose files are not all there.

    Raises:
        RunError: One is gone.
    """
    there = {f"{folder}/{name}" for folder in ("shards", "index") for name in out.names(folder)}
    files = [name for shard in finished.shards for name in (shard.tar, shard.index)]
    if lost := [name for name in files if name not in there]:
        raise RunError(
            f"{out.url}: is finished and lacks {lost[0]} and {len(lost) - 1} more files; put them "
            "back, or remove manifest.json and run again"
        )


def sweep(out: Prefix, finished: Manifest) -> None:
    """Remove what lies in a finished dataset and does not count: claims, and losers' files."""
    known = {name for shard in finished.shards for name in (shard.tar, shard.index)}
    for folder, ending in (("shards", ".tar"), ("index", ".npy")):
        for name in out.names(folder):
            visible = name.endswith(ending) and not name.startswith(".")
            if visible and f"{folder}/{name}" not in known:
                out.remove(f"{folder}/{name}")
    out.remove(CLAIMS)


def _tar_and_index(
    samples: list[RawSample], members: tuple[str, ...], name: str, deduplicate: tuple[str, ...]
) -> tuple[bytes, NDArray[np.void]]:
    """A tar and its index, whose rows point to one place for members that are stored once."""
    first: dict[bytes, tuple[int, str]] = {}
    shared: list[tuple[int, str, tuple[int, str]]] = []
    kept = []
    for row, sample in enumerate(samples):
        own = {}
        for extension, content in sorted(sample.members.items()):
            here = (row, extension)
            place = first.setdefault(content, here) if extension in deduplicate else here
            if place == here:
                own[extension] = content
            else:
                shared.append((row, extension, place))
        kept.append(RawSample(sample.key, own, sample.bucket))
    content = write_tar(kept)
    index = index_tar(content, members, name)
    index["bucket"] = [sample.bucket for sample in samples]
    columns = {extension: number for number, extension in enumerate(members)}
    for row, extension, (source, original) in shared:
        for field in ("offset", "length", "crc32"):
            index[field][row, columns[extension]] = index[field][source, columns[original]]
    return content, index
