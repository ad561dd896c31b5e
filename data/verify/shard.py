"""What is wrong with one shard: all of it, or some samples of it."""

from collections.abc import Callable

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from conf.errors import UserError
from data.image import MAX_BYTES
from data.manifest import Manifest, Shard
from data.verify.headers import header_faults
from data.verify.index import Checked, Member, layout, read_index, unreadable
from data.verify.sample import Fault, member_fault, sample_fault
from data.verify.tar import Reading, pieces, tar_faults

MAX_SAMPLE = 4 * MAX_BYTES


def shard_faults(data: Checked, shard: Shard, decode: bool) -> tuple[list[Fault], int]:
    """Read a shard whole.

    Args:
        data: The dataset.
        shard: The shard.
        decode: Whether every member is also held against what it has to be.

    Returns:
        What is wrong with it, and the bytes that were read.
    """
    faults, index, num_bytes = read_index(data, shard)
    members: list[Member] = []
    if index is not None:
        members, wrong = layout(index, data.manifest, shard)
        faults += wrong
    reading = Reading(members, _decoder(data, shard, faults) if decode else None)
    try:
        for piece in pieces(data.tars, shard):
            reading.feed(piece)
    except FileNotFoundError:
        return [*faults, Fault(shard.tar, "missing", "is missing")], num_bytes
    except UserError as error:
        faults.append(unreadable(data.tars, shard.tar, error))
        return faults, num_bytes + reading.size
    wrong = tar_faults(reading, shard)
    if not wrong and index is not None:
        wrong = header_faults(data, shard, reading)
        if decode:
            wrong += _incomplete(data.manifest, shard, index)
    return faults + wrong, num_bytes + reading.size


def drawn_faults(data: Checked, shard: Shard, rows: NDArray[np.int64]) -> tuple[list[Fault], int]:
    """Read some samples of a shard, each in one range, and hold them against what they have to be.

    Returns:
        What is wrong with them, and the bytes that were read.
    """
    faults, index, num_bytes = read_index(data, shard)
    if index is None:
        return faults, num_bytes
    members, wrong = layout(index[rows], data.manifest, shard)
    faults += wrong + _incomplete(data.manifest, shard, index[rows])
    # Members that samples share lie with the first of them, perhaps far from the others.
    apart = bool(data.manifest.settings.get("deduplicate"))
    parts = [
        part
        for row in range(len(rows))
        for part in _near([member for member in members if member.row == row], apart)
    ]
    for sample in parts:
        start = min(member.start for member in sample)
        length = max(member.stop for member in sample) - start
        if length > MAX_SAMPLE:
            what = f"lies over {length:,} bytes; the most is {MAX_SAMPLE:,}"
            faults.append(Fault(shard.tar, "index", what, sample[0].key))
            continue
        try:
            window = data.tars.read_range(shard.tar, start, length)
        except FileNotFoundError:
            return [*faults, Fault(shard.tar, "missing", "is missing")], num_bytes
        except UserError as error:
            return [*faults, unreadable(data.tars, shard.tar, error)], num_bytes
        num_bytes += len(window)
        faults += _window_faults(data, shard, sample, window, start)
    return faults, num_bytes


def _near(sample: list[Member], apart: bool) -> list[list[Member]]:
    """The members of a sample that are read in one range: all, or each by itself."""
    if apart:
        return [[member] for member in sample]
    return [sample] if sample else []


def _window_faults(
    data: Checked, shard: Shard, sample: list[Member], window: bytes, start: int
) -> list[Fault]:
    """What is wrong with a sample, whose bytes from `start` were read."""
    faults: list[Fault] = []
    decode = _decoder(data, shard, faults)
    for member in sample:
        content = window[member.start - start : member.stop - start]
        found = crc32(content)
        if len(content) < member.stop - member.start:
            faults.append(member.fault(shard.tar, "cut", "lie behind the end of the tar"))
        elif found != member.crc32:
            faults.append(member.fault(shard.tar, "flipped", "differ", found))
        else:
            decode(member, content)
    return faults


def _decoder(data: Checked, shard: Shard, faults: list[Fault]) -> Callable[[Member, bytes], None]:
    """Holds each member against what it has to be, and adds to `faults`."""

    def decode(member: Member, content: bytes) -> None:
        if member.stop - member.start > MAX_BYTES:
            what: str | None = f"are more than {MAX_BYTES:,}"
        else:
            what = member_fault(member.extension, content, member.bucket, data.manifest)
        if what:
            faults.append(member.fault(shard.tar, "undecodable", what))

    return decode


def _incomplete(manifest: Manifest, shard: Shard, index: NDArray[np.void]) -> list[Fault]:
    """The samples that lack a member that they need."""
    faults = []
    for key, lengths in zip(index["key"].tolist(), index["length"].tolist(), strict=True):
        there = [
            name for name, length in zip(manifest.members, lengths, strict=True) if length >= 0
        ]
        what = sample_fault(there, manifest)
        if what:
            text = key.decode(errors="backslashreplace")
            faults.append(Fault(shard.tar, "undecodable", what, text))
    return faults
