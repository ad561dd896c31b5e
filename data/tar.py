"""Tar shards as stock WebDataset reads them, and an index for range reads."""

import io
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from isal.isal_zlib import crc32  # zlib's CRC-32, five times as fast
from numpy.typing import NDArray

from conf.errors import RunError
from data.npy import parse_npy
from data.sample import RawSample


class CorruptShard(RunError):
    """A shard, index or sample that is not what its manifest says; names where."""


def index_dtype(key_bytes: int, num_members: int) -> np.dtype[Any]:
    """A row a sample: key, bucket, and each member's offset, length (-1: none) and CRC-32."""
    return np.dtype(
        [
            ("key", f"S{key_bytes}"),
            ("bucket", "<u2"),
            ("offset", "<u8", (num_members,)),
            ("length", "<i8", (num_members,)),
            ("crc32", "<u4", (num_members,)),
        ]
    )


def key_of(row: Any) -> str:
    """The key in a row of an index, which may hold any bytes."""
    return bytes(row["key"]).decode(errors="backslashreplace")


def write_tar(samples: Iterable[RawSample]) -> bytes:
    """A tar whose bytes depend on the samples alone: fixed times, owner and mode.

    They are those of webdataset's TarWriter, whose package imports torch: 180 MB in each process.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for sample in samples:
            for extension, content in sorted(sample.members.items()):
                item = tarfile.TarInfo(f"{sample.key}.{extension}")
                item.size, item.mode = len(content), 0o444
                item.uname = item.gname = "ldm"
                archive.addfile(item, io.BytesIO(content))
    return buffer.getvalue()


def split_name(name: str) -> tuple[str, str]:
    """Key and extension, split at the first dot of the last part, as WebDataset does."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension


def index_tar(content: bytes, members: Sequence[str], name: str) -> NDArray[np.void]:
    """Index a tar.

    Args:
        content: The whole tar.
        members: The extensions to index, in the manifest's order.
        name: The shard's name, for messages.

    Returns:
        Rows of `index_dtype`, one a sample, in the tar's order.

    Raises:
        CorruptShard: The tar is cut or damaged, holds something other than plain files, or a key
            comes twice.
    """
    found: dict[str, dict[str, tuple[int, int, int]]] = {}
    previous = None
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for item in archive:
                if not item.isreg() or item.issparse():
                    raise CorruptShard(f"{name}: {item.name!r} is not a plain file")
                key, extension = split_name(item.name)
                if key != previous and key in found:
                    raise CorruptShard(f"{name}: key {key!r} comes twice")
                previous = key
                payload = content[item.offset_data : item.offset_data + item.size]
                if len(payload) != item.size or extension in found.get(key, {}):
                    raise CorruptShard(f"{name}: {item.name!r} is cut or comes twice")
                place = (item.offset_data, item.size, crc32(payload))
                found.setdefault(key, {})[extension] = place
            end = archive.offset
        keys = [key.encode() for key in found]
    except (tarfile.TarError, UnicodeError) as error:
        raise CorruptShard(f"{name}: is not a whole tar ({error})") from error
    # tarfile takes a cut at a member's border, or a header that is gone, for the end; a whole tar
    # ends in two blocks of zeros, and nothing comes after them.
    if len(content) < end + 1024 or content[end:].strip(b"\0"):
        raise CorruptShard(f"{name}: has no end mark, so it is cut or damaged")
    return build_index(keys, list(found.values()), members)


def build_index(
    keys: Sequence[bytes],
    places: Sequence[Mapping[str, tuple[int, int, int]]],
    members: Sequence[str],
) -> NDArray[np.void]:
    """Rows of `index_dtype`, all of bucket 0.

    Args:
        keys: Of the samples.
        places: Of each sample its members' offsets, lengths and CRC-32s, by extension.
        members: The extensions to index, in the manifest's order.
    """
    index = np.zeros(len(keys), dtype=index_dtype(max(map(len, keys), default=1), len(members)))
    index["key"] = keys
    for row, found in zip(index, places, strict=True):
        for column, extension in enumerate(members):
            row["offset"][column], row["length"][column], row["crc32"][column] = found.get(
                extension, (0, -1, 0)
            )
    return index


def parse_index(content: bytes, num_members: int, buckets: Sequence[int]) -> NDArray[np.void]:
    """An index from its file.

    Args:
        content: The file.
        num_members: How many members it has to index.
        buckets: How many of its samples have to be in each bucket.

    Raises:
        ValueError: It is no index, or not that one.
    """
    index = parse_npy(content)
    names = index.dtype.names or ()
    width = index.dtype["key"].itemsize if "key" in names else 0
    if index.dtype != index_dtype(width, num_members) or index.ndim != 1:
        raise ValueError("its rows are of another kind")
    counts = np.bincount(index["bucket"], minlength=len(buckets)).tolist()
    if counts != [*buckets]:
        raise ValueError(f"has {counts} samples of the buckets, the manifest {[*buckets]}")
    return index


class Member(NamedTuple):
    """A member of a sample where it lies, not checked yet.

    Args:
        content: Its bytes; fewer than `length` where its tar was cut.
        offset: Of its first byte in the tar.
        length: In bytes, as indexed.
        crc32: As indexed.
        where: Shard and member in words.
    """

    content: memoryview
    offset: int
    length: int
    crc32: int
    where: str

    def copy(self) -> bytes:
        """Its bytes, checked after they were copied.

        Raises:
            CorruptShard: They are cut, or not those that were indexed.
        """
        copied = bytes(self.content)
        if len(copied) != self.length or crc32(copied) != self.crc32:
            raise self.damage()
        return copied

    def damage(self) -> CorruptShard:
        """The error that says which bytes are not those that were indexed."""
        end = self.offset + self.length
        return CorruptShard(
            f"{self.where}: bytes {self.offset} to {end} are not those of the index"
        )


class Column(NamedTuple):
    """The same member of several samples: what a batch is made of, without a record for each.

    Args:
        windows: For each sample bytes of its tar, not checked yet, in which the member lies.
        starts: Place of the member in the window.
        lengths: In bytes, as indexed; where a tar was cut, windows end before.
        crc32s: As indexed.
        member: Gives the n-th as a `Member`, for what is read one by one and for messages.
    """

    windows: list[memoryview]
    starts: list[int]
    lengths: list[int]
    crc32s: list[int]
    member: Callable[[int], Member]
