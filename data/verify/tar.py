"""A tar read once, in pieces, and what is wrong with its bytes.

Nothing is held but the piece, and, where members are decoded, the member that is being read.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from isal.isal_zlib import crc32

from data.image import MAX_BYTES
from data.manifest import Shard
from data.storage import PIECE, Prefix
from data.verify.index import BLOCK, Member
from data.verify.sample import Fault

# Bytes in front of a member, or behind the last, that are searched for names.
GAP = 2**20


def pieces(tars: Prefix, shard: Shard) -> Iterator[bytes]:
    """A tar piece by piece, and of one that is too long a byte of what it has too much."""
    start = 0
    while start <= shard.bytes:
        length = min(PIECE, shard.bytes + 1 - start)
        piece = tars.read_range(shard.tar, start, length)
        yield piece
        start += length
        if len(piece) < length:
            return


@dataclass(slots=True)
class Reading:
    """What a pass over a tar finds; fed with its pieces, all but the last a multiple of `BLOCK`.

    Args:
        members: The members in the tar's order, none overlapping.
        decode: Called with each member whose CRC-32 is right, and its bytes.
        sha: Hash of all bytes.
        size: Bytes so far.
        sums: CRC-32 of each member, as far as it was read.
        headers: Name and size in the block in front of each member.
        tail: What comes behind the last member, as far as `GAP`.
    """

    members: list[Member]
    decode: Callable[[Member, bytes], None] | None = None
    sha: Any = field(default_factory=hashlib.sha256)
    size: int = 0
    sums: list[int] = field(default_factory=list)
    headers: list[tuple[str | None, int]] = field(default_factory=list)
    tail: bytes = b""
    parts: list[bytes] = field(default_factory=list)
    current: int = 0

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""
        begin, end, view = self.size, self.size + len(piece), memoryview(piece)
        self.sha.update(piece)
        for member in self.members[len(self.headers) :]:
            if member.start > end:
                break
            block = view[member.start - BLOCK - begin : member.start - begin]
            self.headers.append(name_and_size(bytes(block)))
            self.sums.append(0)
        while self.current < len(self.headers):
            member, number = self.members[self.current], self.current
            part = view[max(member.start - begin, 0) : max(member.stop - begin, 0)]
            self.sums[number] = crc32(part, self.sums[number])
            self._keep(member, part, member.stop <= end)
            if member.stop > end:
                break
            self.current += 1
        if self.current == len(self.members):
            last = -(-self.members[-1].stop // BLOCK) * BLOCK if self.members else 0
            self.tail += view[max(last - begin, 0) :][: GAP - len(self.tail)]
        self.size = end

    def _keep(self, member: Member, part: memoryview, whole: bool) -> None:
        if self.decode is None:
            return
        if member.stop - member.start <= MAX_BYTES:
            self.parts.append(bytes(part))
        if whole and self.sums[self.current] == member.crc32:
            self.decode(member, b"".join(self.parts))
        if whole:
            self.parts = []


def name_and_size(block: bytes) -> tuple[str | None, int]:
    """Name and size in a header of a plain file; None and -1 if it is none."""
    try:
        size = int(block[124:136].rstrip(b" \0") or b"0", 8)
    except ValueError:
        return None, -1
    if block[156:157] not in (b"0", b"\0"):
        return None, -1
    folder = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    name = block[:100].partition(b"\0")[0]
    return (folder + b"/" + name if folder else name).decode("utf-8", "surrogateescape"), size


def tar_faults(reading: Reading, shard: Shard) -> list[Fault]:
    """What is wrong with a tar's bytes."""
    found = reading.sha.hexdigest()
    if found == shard.sha256 and reading.size == shard.bytes:
        return []
    tar, size, members = shard.tar, reading.size, reading.members
    whole = range(reading.current)
    differ = [i for i in whole if reading.sums[i] != members[i].crc32]
    hashes = (None, None, None, None, shard.sha256, found)
    other = len(differ) > 1 and len(whole) < 2 * len(differ)
    if other and reading.headers[0][0] is not None:
        return [Fault(tar, "replaced", "is another tar", *hashes)]
    faults = [members[i].fault(tar, "flipped", "differ", reading.sums[i]) for i in differ]
    if size > shard.bytes:
        what = f"has more than the {shard.bytes:,} bytes that the manifest says"
        return [Fault(tar, "longer", what), *faults]
    if size < shard.bytes:
        what = f"is cut: has {size:,} bytes, the manifest says {shard.bytes:,}"
        lost = members[reading.current :][:1]
        cut = [member.fault(tar, "cut", "is the first member lost") for member in lost]
        return [Fault(tar, "cut", what), *cut, *faults]
    return faults or [Fault(tar, "between samples", "has other bytes between its samples", *hashes)]
