"""Source `folder`: images with captions in .txt or .json files of the same name beside them."""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from conf.errors import UserError
from conf.groups import FolderSource
from data.image import MAX_BYTES
from data.manifest import sha256
from data.sample import CAPTION, IMAGE_EXTENSIONS, MAX_TEXT_BYTES, META, Pair
from data.sources.base import (
    TOO_LARGE,
    BadSample,
    Part,
    Source,
    caption_member,
    image_of,
    meta_member,
    meta_of,
    read_capped,
    safe_key,
    text_of,
)
from data.storage import Prefix, open_prefix

CAPTION_FIELD = "caption"
NO_FILE = "not a plain file"
GONE = "no such file"


class Files(NamedTuple):
    """The files of a pair, by name.

    Args:
        image: The image.
        caption: The .txt that is its caption; None if the json holds it.
        meta: The .json, if there is one.
    """

    image: str
    caption: str | None
    meta: str | None


def folder_source(config: FolderSource) -> Source:
    """The pairs in a folder and below it; images without captions are left out.

    Raises:
        UserError: The folder cannot be read, or two images share a caption.
    """
    prefix, setting = open_prefix(config.path, "source.path"), f"source.path={config.path}"
    versions = prefix.files()
    found: dict[str, Files] = {}
    for name in sorted(versions):
        stem, _, extension = name.rpartition(".")
        files = _files_of(name, stem, versions, config.caption_field)
        if extension.lower() in IMAGE_EXTENSIONS and files:
            other = found.setdefault(safe_key(stem), files)
            if other != files:
                raise UserError(
                    setting,
                    f"{other.image} and {name} share one caption file",
                    "rename or remove one of them",
                )

    in_order = sorted(found.values(), key=lambda files: files.image)
    names = [name for files in in_order for name in files if name is not None]
    # A name on a disk may be no UTF-8.
    words = json.dumps(
        [(name, versions[name]) for name in names], separators=(",", ":"), ensure_ascii=False
    )
    content = sha256(words.encode(errors="surrogateescape"))
    captions = {} if config.caption_field is None else {"caption_field": config.caption_field}
    settings = {"path": config.path, "count": len(found), "content": content, **captions}
    pairs = sorted(found.items())
    return Source(len(pairs), settings, lambda first, last: pairs[first:last])


def _files_of(image: str, stem: str, there: Collection[str], field: str | None) -> Files | None:
    """An image and what lies beside it; None if there is nothing that could be its caption."""
    text, meta = f"{stem}.{CAPTION}", f"{stem}.{META}"
    caption = text if field is None and text in there else None
    if caption is None and meta not in there:
        return None
    return Files(image, caption, meta if meta in there else None)


def folder_part(config: FolderSource, pairs: list[tuple[str, Files]]) -> Part:
    """The pairs of keys and files."""
    prefix, setting = open_prefix(config.path, "source.path"), f"source.path={config.path}"
    files_of = dict(pairs)

    def pair(key: str) -> Pair:
        files = files_of[key]
        where = files.image
        content = _read(prefix, files.meta, setting, where) if files.meta else None
        meta = meta_member(content, setting, where)
        if files.caption:
            caption = text_of(_read(prefix, files.caption, setting, where), setting, where)
        else:
            field = CAPTION_FIELD if config.caption_field is None else config.caption_field
            caption = caption_member(meta, field, setting, where)
        image = image_of(_read(prefix, where, setting, where), setting, where)
        return Pair(key, image, caption, meta_of(meta, key, image))

    return Part(tuple(files_of), pair)


def _read(prefix: Prefix, name: str, setting: str, where: str) -> bytes:
    """A file of a sample; of an image that is too large only what shows that.

    Raises:
        BadSample: It is too large, gone, or no plain file of the folder.
    """
    if prefix.local:
        _require_inside(prefix.local, prefix.path(name), name, setting, where)
    most = MAX_BYTES if name == where else MAX_TEXT_BYTES
    try:
        content = read_capped(prefix, name, most)
    except FileNotFoundError as error:
        raise BadSample(setting, where, GONE, f"{name} is not there") from error
    if name != where and len(content) > most:
        raise BadSample(setting, where, TOO_LARGE, f"{name} has more than {most:,} bytes")
    return content


def _require_inside(folder: Path, path: str, name: str, setting: str, where: str) -> None:
    """Refuse a link out of the folder, and what is no file: reading a pipe would never end.

    Whoever packed a folder must not choose files of this machine.

    Raises:
        BadSample: It is one.
    """
    file = os.path.realpath(path)
    if not Path(file).is_relative_to(os.path.realpath(folder)):
        raise BadSample(setting, where, NO_FILE, f"{name} is a link out of the folder")
    if not os.path.isfile(file) and os.path.lexists(file):  # noqa: PTH113 - Path's own may raise
        raise BadSample(setting, where, NO_FILE, f"{name} is a pipe, a device or the like")
