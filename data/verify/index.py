"""Indexes that nobody vouches for, and what they say that cannot be."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conf.errors import UserError
from data.manifest import MAX_INDEX_BYTES, Manifest, Shard, sha256
from data.storage import Prefix
from data.tar import parse_index
from data.verify.sample import Fault

BLOCK = 512  # bytes; the unit of a tar


@dataclass(frozen=True, slots=True)
class Checked:
    """A dataset that is checked.

    Args:
        prefix: Where it lies.
        tars: Where its tars lie.
        manifest: Its manifest.
    """

    prefix: Prefix
    tars: Prefix
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Member:
    """A member as the index has it: bytes `start` to `stop` of the tar."""

    row: int
    key: str
    extension: str
    bucket: int
    start: int
    stop: int
    crc32: int

    def fault(self, file: str, kind: str, what: str, found: int | None = None) -> Fault:
        """A fault of this member; `found` is the CRC-32 that it has."""
        hashes = () if found is None else (f"{self.crc32:08x}", f"{found:08x}")
        place = (self.key, self.extension, self.start, self.stop)
        return Fault(file, kind, what, *place, *hashes)


def read_index(data: Checked, shard: Shard) -> tuple[list[Fault], NDArray[np.void] | None, int]:
    """A shard's index, if it is right, what is wrong with it, and the bytes that were read."""
    try:
        content = data.prefix.read(shard.index, MAX_INDEX_BYTES)
    except FileNotFoundError:
        return [Fault(shard.index, "missing", "is missing")], None, 0
    except UserError as error:
        return [unreadable(data.prefix, shard.index, error)], None, 0
    found = sha256(content)
    if found != shard.index_sha256:
        what = "is not the index that the manifest pins"
        hashes = (shard.index_sha256, found)
        return (
            [Fault(shard.index, "index", what, None, None, None, None, *hashes)],
            None,
            len(content),
        )
    try:
        index = parse_index(content, len(data.manifest.members), shard.buckets)
        return [], index, len(content)
    except ValueError as error:
        return [Fault(shard.index, "index", f"is no index: {error}")], None, len(content)


def layout(
    index: NDArray[np.void], manifest: Manifest, shard: Shard
) -> tuple[list[Member], list[Fault]]:
    """The members of an index in the tar's order, and those that cannot lie where it says."""
    members, faults = [], []
    columns = [index[name].tolist() for name in ("key", "bucket", "offset", "length", "crc32")]
    for row, (name, bucket, offsets, lengths, sums) in enumerate(zip(*columns, strict=True)):
        key = name.decode(errors="backslashreplace")
        places = zip(manifest.members, offsets, lengths, sums, strict=True)
        for extension, start, length, crc in places:
            if length >= 0:
                members.append(Member(row, key, extension, bucket, start, start + length, crc))
    members.sort(key=lambda member: (member.start, member.stop, member.row))
    right: list[Member] = []
    for member in members:
        if right and manifest.settings.get("deduplicate") and _is_shared(member, right[-1]):
            continue  # stored once, and checked once
        if member.stop > shard.bytes:
            faults.append(member.fault(shard.index, "index", "lie behind the end of the tar"))
        elif member.start % BLOCK or member.start < BLOCK:
            faults.append(member.fault(shard.index, "index", "begin where no member of a tar can"))
        elif right and member.start - BLOCK < right[-1].stop:
            other = f"{right[-1].key}.{right[-1].extension}"
            faults.append(member.fault(shard.index, "index", f"overlap with {other}"))
        else:
            right.append(member)
    return right, faults


def _is_shared(one: Member, other: Member) -> bool:
    return (one.start, one.stop, one.crc32) == (other.start, other.stop, other.crc32)


def unreadable(prefix: Prefix, file: str, error: UserError) -> Fault:
    """The fault of a file on a local disk that cannot be read.

    Raises:
        UserError: It lies elsewhere, so that the storage is at fault and not the file.
    """
    if not prefix.local:
        raise error
    return Fault(file, "unreadable", error.wrong)
