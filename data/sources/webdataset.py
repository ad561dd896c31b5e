"""Source `webdataset`: the tars of others, as img2dataset and LAION make them.

The tars are searched once, header by header, for where every member lies; samples are then range
reads. What was found of a tar is kept in a small file of the dataset that is being made, so that
neither another process nor the command after an interruption searches again.
"""

import json
import tarfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate

from conf.errors import RunError
from conf.groups import WebDatasetSource
from data.sample import CAPTION, META, Pair
from data.sources.base import (
    BadSample,
    Part,
    Source,
    caption_member,
    image_of,
    meta_member,
    meta_of,
    text_of,
)
from data.sources.tars import (
    Header,
    Place,
    Tars,
    checked,
    members_of,
    refusing_damage,
    require_end,
    with_member,
)
from data.storage import Prefix, open_prefix

SEARCHES = "search"


@dataclass(frozen=True, slots=True)
class SearchTask:
    """A tar to be searched.

    Args:
        tar: Its name.
        number: Its number among the tars.
        out: URL of the dataset that keeps what was found.
    """

    tar: str
    number: int
    out: str


def search_tar(config: WebDatasetSource, task: SearchTask) -> None:
    """Find the samples of a tar and keep where they are.

    Members of a key need not stand together.

    Raises:
        BadSource: The tar is cut or damaged.
    """
    prefix, tar = open_prefix(config.path, "source.path"), task.tar
    found: dict[str, Place] = {}
    with (
        prefix.errors("read"),
        refusing_damage(prefix, tar),
        prefix.open(tar) as file,
        tarfile.open(fileobj=file, mode="r:", tarinfo=Header) as archive,
    ):
        for item, stem, extension in members_of(archive, prefix, tar):
            found[stem] = with_member(found.get(stem) or Place(tar, stem), item, extension)
        end = archive.offset
    require_end(prefix, tar, end)
    caption = CAPTION if config.caption_field is None else META
    places = sorted((checked(place, caption) for place in found.values()), key=lambda p: p.key)
    # A name in a tar may be no UTF-8, which JSON in ASCII can hold.
    name = f"{SEARCHES}/{task.number:05d}.{len(places)}.json"
    content = json.dumps([asdict(place) for place in places]).encode()
    open_prefix(task.out, "out").write(name, content)


def searches(out: Prefix) -> dict[int, str]:
    """The files of the searches that were made so far, by the number of the tar."""
    whole = (name for name in out.names(SEARCHES) if not name.startswith("."))
    return {int(name.partition(".")[0]): f"{SEARCHES}/{name}" for name in whole}


def webdataset_source(tars: Tars, found: Mapping[int, str], out: Prefix) -> Source:
    """The samples of tars that were all searched, in the tars' order and by key in each.

    Raises:
        RunError: Another process has removed what was found.
    """
    if len(found) < len(tars.names):
        raise lost(out)
    files = [found[number] for number in range(len(tars.names))]
    ends = list(accumulate(int(name.split(".")[1]) for name in files))

    def part(first: int, last: int) -> list[tuple[str, str, int, int]]:
        parts, number = [], bisect_right(ends, first)
        while first < last:
            start = ends[number] - int(files[number].split(".")[1])
            stop = min(last, ends[number])
            if stop > first:
                parts.append((out.url, files[number], first - start, stop - start))
            first, number = max(first, stop), number + 1
        return parts

    return Source(ends[-1] if ends else 0, tars.settings, part)


def lost(out: Prefix) -> RunError:
    """The error of finding gone what was found of the tars."""
    return RunError(f"{out.url}: another process has finished it meanwhile, or begun it anew")


@lru_cache(maxsize=2)
def _places(out: Prefix, name: str, version: str) -> list[Place]:
    raw = json.loads(out.read(name))
    return [
        Place(
            one["tar"],
            one["stem"],
            {extension: tuple(at) for extension, at in one["members"].items()},
            tuple(one["fault"]) if one["fault"] else None,
        )
        for one in raw
    ]


def webdataset_part(config: WebDatasetSource, part: Sequence[tuple[str, str, int, int]]) -> Part:
    """The samples of some stretches of what searches found."""
    prefix, setting = open_prefix(config.path, "source.path"), f"source.path={config.path}"
    places: dict[str, Place] = {}
    for url, name, first, last in part:
        out = open_prefix(url, "out")
        try:
            found = _places(out, name, out.version(name))[first:last]
        except FileNotFoundError:
            raise lost(out) from None
        places |= {place.key: place for place in found}

    def pair(key: str) -> Pair:
        place = places[key]
        where = f"{place.tar}: {place.stem}"
        if place.fault or place.image is None:
            raise BadSample(setting, where, *(place.fault or ()))
        members = _read(prefix, place)
        meta = meta_member(members.get(META), setting, where)
        if config.caption_field is None:
            caption = text_of(members[CAPTION], setting, where)
        else:
            caption = caption_member(meta, config.caption_field, setting, where)
        image = image_of(members[place.image], setting, where)
        return Pair(key, image, caption, meta_of(meta, key, image))

    return Part(tuple(places), pair)


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
