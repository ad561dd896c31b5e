"""Tars of others, header by header: which samples are in one, where, and what is wrong with them.

Nothing is extracted, unpickled or run, and members that are no image, text or json are not read.
What a stock reader would pair wrongly or lose is a bad sample here, and a tar that was cut is
refused: nobody knows how many samples it lost.
"""

import posixpath
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

from conf.groups import WebDatasetSource
from data.image import MAX_BYTES
from data.manifest import canonical_json, sha256
from data.sample import CAPTION, IMAGE_EXTENSIONS, MAX_TEXT_BYTES, META
from data.sources.base import (
    NO_CAPTION,
    NO_IMAGE,
    TOO_LARGE,
    BadSource,
    is_writable,
    safe_key,
)
from data.storage import Prefix, open_prefix
from data.tar import split_name

NOT_PLAIN = "not a plain file"
TWICE = "member twice"
MAX_NAME = 1024
# Long names and the like; tarfile reads a header whole, whatever size it claims.
MAX_EXTENDED_BYTES = 2**14
EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
END_MARK = 1024


@dataclass(frozen=True, slots=True)
class Tars:
    """The tars of a prefix and below it.

    Args:
        prefix: Where they lie.
        names: Their names, sorted.
        settings: What tells them from others, JSON-ready.
    """

    prefix: Prefix
    names: tuple[str, ...]
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample lies, or why it cannot be used.

    Args:
        tar: The tar's name.
        stem: The sample's key in the tar.
        members: Offset and length of its image, text and json, by extension in small letters.
        fault: Kind and detail of what is wrong, if anything is.
    """

    tar: str
    stem: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    fault: tuple[str, str] | None = None

    @property
    def key(self) -> str:
        """The sample's key in a dataset of several tars; `safe_key` never gives an empty pair."""
        return f"{safe_key(self.tar.removesuffix('.tar'))}~~{safe_key(self.stem)}"

    @property
    def image(self) -> str | None:
        """The extension of its image."""
        return next((name for name in IMAGE_EXTENSIONS if name in self.members), None)


def list_tars(config: WebDatasetSource) -> Tars:
    """The tars of a source."""
    prefix = open_prefix(config.path, "source.path")
    files = prefix.files()
    names = tuple(sorted(name for name in files if name.lower().endswith(".tar")))
    for name in names:
        if not is_writable(name):
            raise damaged(prefix, name, "has a name that is no UTF-8")
    content = sha256(canonical_json([(name, files[name]) for name in names]))
    captions = {} if config.caption_field is None else {"caption_field": config.caption_field}
    settings = {"path": config.path, "tars": len(names), "content": content, **captions}
    return Tars(prefix, names, settings)


@contextmanager
def refusing_damage(prefix: Prefix, tar: str) -> Iterator[None]:
    """Turn what tarfile says of a damaged tar into a BadSource."""
    try:
        yield
    except FileNotFoundError as error:
        raise damaged(prefix, tar, "is not there, or a link to nowhere") from error
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise damaged(prefix, tar, f"is not a whole tar ({error})") from error


def damaged(prefix: Prefix, tar: str, wrong: str) -> BadSource:
    """The error that names a damaged tar."""
    setting = f"{prefix.setting}={prefix.url}"
    return BadSource(setting, f"{tar} {wrong}", "get it again, or remove it")


class Header(tarfile.TarInfo):
    """A member's header, read only if it is of a size that headers have."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """A header from its block."""
        item = super().frombuf(buf, encoding, errors)
        if item.type in EXTENDED and not 0 <= item.size <= MAX_EXTENDED_BYTES:
            raise tarfile.ReadError(f"an extended header of {item.size:,} bytes")
        return item


def members_of(
    archive: tarfile.TarFile, prefix: Prefix, tar: str
) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Every member of a tar but folders, with its key and its extension in small letters.

    Raises:
        BadSource: A header is damaged so that no reader could go on.
    """
    for item in archive:
        # tarfile keeps all of them, and with each all that a global header says.
        archive.members = []  # type: ignore[attr-defined]
        if item.size < 0:  # tarfile would go back, and round for ever
            raise damaged(prefix, tar, "has a member of a negative size")
        if not item.isdir():
            stem, extension = split_name(posixpath.normpath(item.name))
            yield item, stem, extension.lower()


def require_end(prefix: Prefix, tar: str, end: int) -> None:
    """Refuse a tar without the two blocks of zeros that end it, or with another one behind them.

    tarfile takes a cut between members, or a damaged header, for the end.

    Raises:
        BadSource: It is so.
    """
    tail = prefix.read_range(tar, end, END_MARK + tarfile.RECORDSIZE)
    if tail[:END_MARK] != bytes(END_MARK):
        raise damaged(prefix, tar, "has no end mark, so it is cut or damaged")
    if tail.strip(b"\0"):
        raise damaged(prefix, tar, "goes on behind its end mark, where no reader would look")


def with_member(place: Place, item: tarfile.TarInfo, extension: str) -> Place:
    """A sample with one more member; the first fault that is found stays."""
    image = extension in IMAGE_EXTENSIONS
    what, most = ("image", MAX_BYTES) if image else (extension, MAX_TEXT_BYTES)
    fault: tuple[str, str] | None = None
    if len(item.name) > MAX_NAME:
        fault = (TOO_LARGE, f"has a name of {len(item.name):,} characters, above {MAX_NAME:,}")
    elif not item.isreg() or item.issparse():
        fault = (NOT_PLAIN, f"{item.name!r} is a link, a device or the like")
    elif item.name.startswith("/") or ".." in item.name.split("/"):
        fault = (NOT_PLAIN, f"{item.name!r} leads out of its folder")
    elif not image and extension not in (CAPTION, META):
        return place
    elif extension in place.members or (image and place.image):
        fault = (TWICE, f"{item.name!r} is its second {what}")
    elif item.size > most:
        fault = (TOO_LARGE, f"{item.name!r} has {item.size:,} bytes; the most is {most:,}")
    members = {extension: (item.offset_data, item.size), **place.members}
    return replace(place, members=members, fault=place.fault or fault)


def checked(place: Place, caption: str) -> Place:
    """A sample whose members are all known; `caption` is the extension of the caption's."""
    if place.fault is None and place.image is None:
        return replace(place, fault=(NO_IMAGE, ""))
    if place.fault is None and caption not in place.members:
        return replace(place, fault=(NO_CAPTION, ""))
    return place
