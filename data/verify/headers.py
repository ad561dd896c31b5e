"""A right index against the headers of a right tar: a fault here is of whoever made both."""

import io
import tarfile

from data.manifest import Shard
from data.tar import split_name
from data.verify.index import BLOCK, Checked, Member
from data.verify.sample import Fault
from data.verify.tar import GAP, Reading


def header_faults(data: Checked, shard: Shard, reading: Reading) -> list[Fault]:
    """Where the index says something else than the headers.

    In our own tars every member is indexed, under its own name. In those of others there may be
    more, extensions may be in capitals and the index has keys of its own: there the members of a
    sample must have one stem.
    """
    own = data.manifest.tars is None
    faults: list[Fault] = []
    stems: dict[int, str] = {}
    first = 0
    for member, (name, size) in zip(reading.members, reading.headers, strict=True):
        gap = member.start - BLOCK - first  # a long name, or members that are not indexed
        names: list[str | None] = [name]
        if gap:
            # Of a gap that is too long for an extended header nothing is known but its end.
            names = gap_names(data, shard, first, member.start) if gap < GAP else [None, None]
        first = -(-member.stop // BLOCK) * BLOCK
        if size != member.stop - member.start:
            faults.append(member.fault(shard.index, "index", "are no plain file of the tar"))
        elif own and len(names) > 1:
            what = "come after members that are not in the index"
            faults.append(member.fault(shard.index, "index", what))
        elif (name := names[-1]) is not None and not _is_named(member, name, stems, own):
            faults.append(member.fault(shard.index, "index", f"are {name!r} in the tar"))
    if own and tail_names(reading.tail):
        what = "does not have the last members of its tar"
        faults.append(Fault(shard.index, "index", what))
    return faults


def _is_named(member: Member, name: str, stems: dict[int, str], own: bool) -> bool:
    stem, extension = split_name(name)
    if own:
        return stem == member.key and extension == member.extension
    return extension.lower() == member.extension and stems.setdefault(member.row, stem) == stem


def gap_names(data: Checked, shard: Shard, start: int, stop: int) -> list[str | None]:
    """The names of the members whose headers lie in a stretch of the tar."""
    return tail_names(data.tars.read_range(shard.tar, start, stop - start)) or [None]


def tail_names(content: bytes) -> list[str | None]:
    """The names of the members whose headers lie in a piece of a tar that begins with a header."""
    names: list[str | None] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            while item := archive.next():
                names.append(item.name)
    except (tarfile.TarError, ValueError, OverflowError):
        pass  # the piece ends where a member begins
    return names
