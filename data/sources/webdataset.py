"""Source `webdataset`: the tars of others, as img2dataset and LAION make them.

The tars are searched once, header by header, for where every member lies; samples are then range
reads. Nothing is extracted, unpickled or run, and members that are no image, text or json are not
read. What a stock reader would pair wrongly or lose is a bad sample here, and a tar that was cut is
refused: nobody knows how many samples it lost.
"""

import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from conf.errors import UserError
from conf.groups import WebDatasetSource
from data.image import MAX_BYTES, fit
from data.manifest import canonical_json, sha256
from data.sample import CAPTION, IMAGE_EXTENSIONS, META, Pair
from data.sources.base import (
    BAD_META,
    NO_CAPTION,
    NO_IMAGE,
    BadSample,
    Source,
    image_of,
    is_writable,
    meta_of,
    safe_key,
    text_of,
)
from data.sources.tabular import BadRow, json_object
from data.storage import Prefix, open_prefix
from data.tar import split_name

NOT_PLAIN = "not a plain file"
TWICE = "member twice"
TOO_LARGE = "too large"
MAX_TEXT_BYTES = 2**24
END_MARK = 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample lies, or why it cannot be used.

    Args:
        tar: The tar's name.
        stem: The sample's key in the tar.
        members: Offset and length of the sample's `image`, `txt` and `json`.
        fault: Kind and detail of what is wrong, if anything is.
    """

    tar: str
    stem: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    fault: tuple[str, str] | None = None


def webdataset_source(
    config: WebDatasetSource, size: int, places: Mapping[str, Place] | None
) -> Source:
    """The samples of all tars in a prefix and below it.

    Args:
        config: Where the tars lie.
        size: Side of the images in pixels.
        places: Those of some keys, from an earlier search; None searches all tars.

    Raises:
        UserError: A tar is cut or damaged.
    """
    prefix, setting = open_prefix(config.path, "source.path"), f"source.path={config.path}"
    files = prefix.files()
    tars = sorted(name for name in files if name.lower().endswith(".tar"))
    if places is None:
        places = {key: place for tar in tars for key, place in _search(prefix, tar, setting)}
    known = places

    def pair(key: str) -> Pair:
        place = known[key]
        where = f"{place.tar}: {place.stem}"
        if place.fault:
            raise BadSample(setting, where, *place.fault)
        members = _read(prefix, place)
        try:
            found = json_object(members[META]) if META in members else {}
        except BadRow as error:
            raise BadSample(setting, where, BAD_META, f"its json {error}") from error
        if not is_writable(found):
            raise BadSample(setting, where, BAD_META, "its json has half of a surrogate pair")
        caption = text_of(members[CAPTION], setting, where)
        image = image_of(members["image"], setting, where)
        return Pair(key, fit(image, size, size), caption, meta_of(found, key, image))

    content = sha256(canonical_json([(tar, files[tar]) for tar in tars]))
    settings = {"path": config.path, "tars": len(tars), "content": content}
    return Source(tuple(sorted(known)), pair, settings, known)


def _search(prefix: Prefix, tar: str, setting: str) -> Iterator[tuple[str, Place]]:
    """The samples of a tar by key. Members of a key need not stand together."""
    found: dict[str, Place] = {}
    with prefix.errors("read"), prefix.open(tar) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for item in archive:
                    if item.size < 0:  # tarfile would go back, and round for ever
                        raise _cut(setting, tar, "has a member of a negative size")
                    if not item.isdir():
                        name = posixpath.normpath(item.name)
                        stem, extension = split_name(name)
                        place = found.get(stem) or Place(tar, stem)
                        found[stem] = _with_member(place, item, extension.lower())
                end = archive.offset
        except (tarfile.TarError, UnicodeError, ValueError, OverflowError) as error:
            raise _cut(setting, tar, f"is not a whole tar ({error})") from error
        file.seek(end)  # tarfile takes a cut between members, or a damaged header, for the end
        if file.read(END_MARK) != bytes(END_MARK):
            raise _cut(setting, tar, "has no end mark, so it is cut or damaged")
    folder = tar[: -len(".tar")]
    for stem, place in found.items():
        yield safe_key(f"{folder}/{stem}"), _checked(place)


def _cut(setting: str, tar: str, wrong: str) -> UserError:
    return UserError(setting, f"{tar} {wrong}", "get it again, or remove it")


def _with_member(place: Place, item: tarfile.TarInfo, extension: str) -> Place:
    """A sample with one more member; the first fault that is found stays."""
    which = "image" if extension in IMAGE_EXTENSIONS else extension
    most = MAX_BYTES if which == "image" else MAX_TEXT_BYTES
    fault: tuple[str, str] | None = None
    if not item.isreg() or item.issparse():
        fault = (NOT_PLAIN, f"{item.name!r} is a link, a device or the like")
    elif item.name.startswith("/") or ".." in item.name.split("/"):
        fault = (NOT_PLAIN, f"{item.name!r} leads out of its folder")
    elif which not in ("image", CAPTION, META):
        return place
    elif which in place.members:
        fault = (TWICE, f"{item.name!r} is its second {which}")
    elif item.size > most:
        fault = (TOO_LARGE, f"{item.name!r} has {item.size:,} bytes; the most is {most:,}")
    members = {which: (item.offset_data, item.size), **place.members}
    return replace(place, members=members, fault=place.fault or fault)


def _checked(place: Place) -> Place:
    if place.fault is None and "image" not in place.members:
        return replace(place, fault=(NO_IMAGE, ""))
    if place.fault is None and CAPTION not in place.members:
        return replace(place, fault=(NO_CAPTION, ""))
    return place


def _read(prefix: Prefix, place: Place) -> dict[str, bytes]:
    """A sample's members, in one read where they stand together."""
    parts = place.members.values()
    start, end = min(at for at, _ in parts), max(at + length for at, length in parts)
    if end - start <= sum(length for _, length in parts) + 2**16:
        window = prefix.read_range(place.tar, start, end - start)
        return {
            name: window[at - start : at - start + length]
            for name, (at, length) in place.members.items()
        }
    return {name: prefix.read_range(place.tar, *part) for name, part in place.members.items()}
