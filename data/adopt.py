"""Tars of others, indexed where they are: `ldm shard source=webdataset source.in_place=true`.

A tar is read once, from its beginning to its end, and never held as a whole: its hash, where every
member lies, and the size of every image come out of the same pass.
"""

import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from conf.groups import WebDatasetSource
from conf.schema import ShardCommand
from data.bucket import bucket_of, make_buckets
from data.image import BadImage, decode_image, read_size
from data.sample import CAPTION, IMAGE_EXTENSIONS, META
from data.shard import ShardEntry, TarFile, commit_index
from data.sift import Skipped, left_out_by, skip_bad
from data.sources.base import BAD_IMAGE, BadSample, caption_member, meta_member, text_of
from data.sources.tars import (
    Header,
    Place,
    checked,
    members_of,
    refusing_damage,
    require_end,
    with_member,
)
from data.storage import Prefix, open_prefix
from data.tar import build_index

MEMBERS = ("jpg", "jpeg", "png", "webp", CAPTION, META)
APART = "members apart"
PIECE = 2**24  # bytes of a tar that are read at once
MOST_ENDS = 9  # times that a tar is read from its end on; tarfile would go on up to any place


@dataclass(frozen=True, slots=True)
class TarTask:
    """A tar to be indexed.

    Args:
        name: The shard's name.
        tar: The tar's name.
    """

    name: str
    tar: str


@dataclass(slots=True)
class Sample:
    """What one pass over a tar shows of a sample.

    Args:
        place: Where it lies.
        size: Height and width of its image.
        meta: What its json says.
        crcs: CRC-32 by extension.
        fault: What is wrong with its content, if anything is.
    """

    place: Place
    size: tuple[int, int] = (0, 0)
    meta: Mapping[str, Any] = field(default_factory=dict)
    crcs: dict[str, int] = field(default_factory=dict)
    fault: BadSample | None = None


def adopt_tar(config: ShardCommand, task: TarTask) -> ShardEntry:
    """Write the index of a tar.

    Raises:
        BadSource: The tar is cut or damaged.
        BadSample: A sample is bad, and none may be.
    """
    source = cast(WebDatasetSource, config.source)
    skipped = Skipped()
    tar, found = read_through(source, task.tar)
    samples = [sample for sample in found if _comes_in(config, source, sample, skipped)]
    buckets = make_buckets(config.size, config.buckets.step, config.buckets.max_aspect)
    index = _index(samples, buckets)
    out = open_prefix(config.out, "out")
    return commit_index(out, task.name, tar, index, len(buckets), **skipped.to_dict())


def read_through(source: WebDatasetSource, tar: str) -> tuple[TarFile, list[Sample]]:
    """A tar and its samples, good and bad, in its order.

    Raises:
        BadSource: The tar is cut or damaged.
    """
    prefix = open_prefix(source.path, "source.path")
    passing = _Passing(prefix, tar)
    samples: dict[str, Sample] = {}
    previous = None
    # As a stream, tarfile only asks for what comes next.
    with (
        refusing_damage(prefix, tar),
        tarfile.open(
            fileobj=cast(Any, passing), mode="r|", bufsize=2**18, tarinfo=Header
        ) as archive,
    ):
        for item, stem, extension in members_of(archive, prefix, tar):
            sample = samples.setdefault(stem, Sample(Place(tar, stem)))
            before = sample.place
            sample.place = with_member(before, item, extension)
            if sample.place is before:
                continue
            where = f"{tar}: {stem}"
            setting = f"source.path={source.path}"
            if previous not in (None, stem) and before.members:
                sample.fault = sample.fault or BadSample(setting, where, APART)
            previous = stem
            if sample.place.fault is None:
                content = _content(archive, item)
                sample.crcs[extension] = crc32(content)
                try:
                    _look_into(sample, extension, content, source, setting, where)
                except BadSample as fault:
                    sample.fault = sample.fault or fault
        end = archive.offset
    passing.finish()
    require_end(prefix, tar, end)
    return TarFile(tar, passing.bytes, passing.sha256.hexdigest()), list(samples.values())


def _content(archive: tarfile.TarFile, item: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(item)
    assert file is not None  # it is a plain file
    return file.read()


def _look_into(
    sample: Sample,
    extension: str,
    content: bytes,
    source: WebDatasetSource,
    setting: str,
    where: str,
) -> None:
    """Take from a member what an index needs.

    Raises:
        BadSample: The member cannot be used.
    """
    if extension in IMAGE_EXTENSIONS:
        try:
            sample.size = _upright_size(content, source.check)
        except BadImage as error:
            raise BadSample(setting, where, BAD_IMAGE, str(error)) from error
    elif extension == META:
        sample.meta = meta_member(content, setting, where)
        if source.caption_field is not None:
            caption_member(sample.meta, source.caption_field, setting, where)
    elif source.caption_field is None:
        text_of(content, setting, where)


def _upright_size(content: bytes, check: bool) -> tuple[int, int]:
    if not check:
        return read_size(content)
    height, width, _ = decode_image(content).shape
    return height, width


def _comes_in(
    config: ShardCommand, source: WebDatasetSource, sample: Sample, skipped: Skipped
) -> bool:
    """Whether a sample is indexed; if not, it is added to `skipped`."""
    place = checked(sample.place, CAPTION if source.caption_field is None else META)
    fault = sample.fault
    if place.fault:
        where = f"{place.tar}: {place.stem}"
        fault = BadSample(f"source.path={source.path}", where, *place.fault)
    if fault:
        skip_bad(place.key, fault, config.max_bad_share, skipped)
        return False
    reason = left_out_by({**sample.meta, "original_size": sample.size}, config.filter)
    if reason is not None:
        skipped.filtered[reason] += 1
    return reason is None


def _index(samples: list[Sample], buckets: tuple[tuple[int, int], ...]) -> NDArray[np.void]:
    keys = [sample.place.key.encode() for sample in samples]
    places = [
        {name: (*place, sample.crcs[name]) for name, place in sample.place.members.items()}
        for sample in samples
    ]
    index = build_index(keys, places, MEMBERS)
    index["bucket"] = [bucket_of(*sample.size, buckets) for sample in samples]
    return index


class _Passing:
    """A tar as it passes: gives tarfile what comes next, and hashes all of it."""

    def __init__(self, prefix: Prefix, tar: str) -> None:
        self.fetch: Callable[[int], bytes] = lambda at: prefix.read_range(tar, at, PIECE)
        self.piece = io.BytesIO()
        self.bytes = self.ends = 0
        self.sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        content = self.piece.read(size)
        if not content:
            if self.ends > MOST_ENDS:
                raise tarfile.ReadError("a member ends far behind the end")
            fetched = self.fetch(self.bytes)
            self.bytes += len(fetched)
            self.ends += not fetched
            self.sha256.update(fetched)
            self.piece = io.BytesIO(fetched)
            content = self.piece.read(size)
        return content

    def finish(self) -> None:
        """Read what tarfile left."""
        while self.read(PIECE):
            pass
