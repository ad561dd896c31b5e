"""Source `folder`: images with captions in .txt or .json files of the same name beside them."""

from collections.abc import Collection
from typing import NamedTuple

from conf.errors import UserError
from conf.groups import FolderSource
from data.image import MAX_BYTES
from data.manifest import canonical_json, sha256
from data.sample import CAPTION, IMAGE_EXTENSIONS, META, Pair
from data.sources.base import (
    MAX_TEXT_BYTES,
    TOO_LARGE,
    BadSample,
    Part,
    Source,
    caption_member,
    image_of,
    meta_member,
    meta_of,
    safe_key,
    text_of,
)
from data.storage import Prefix, open_prefix

CAPTION_FIELD = "caption"
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
    content = sha256(canonical_json([(name, versions[name]) for name in names]))
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
        BadSample: It is gone, as it is behind a link that leads nowhere, or too large.
    """
    most = MAX_BYTES if name == where else MAX_TEXT_BYTES
    try:
        content = prefix.read_range(name, 0, most + 1)
    except FileNotFoundError as error:
        raise BadSample(setting, where, GONE, f"{name} is not there") from error
    if name != where and len(content) > most:
        raise BadSample(setting, where, TOO_LARGE, f"{name} has more than {most:,} bytes")
    return content
