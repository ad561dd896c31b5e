"""Source `folder`: images with captions in .txt files of the same name beside them."""

import json
import os
from pathlib import Path

from conf.errors import UserError
from conf.groups import FolderSource
from data.image import MAX_BYTES
from data.manifest import sha256
from data.sample import IMAGE_EXTENSIONS, Pair
from data.sources.base import (
    BAD_CAPTION,
    MAX_TEXT_BYTES,
    BadSample,
    Part,
    Source,
    image_of,
    read_capped,
    safe_key,
    text_of,
)
from data.storage import Prefix, open_prefix

NO_FILE = "not a plain file"


def folder_source(config: FolderSource) -> Source:
    """The pairs in a folder and below it; images without captions are left out.

    Raises:
        UserError: The folder cannot be read, or two images share a caption.
    """
    prefix, setting = open_prefix(config.path, "source.path"), f"source.path={config.path}"
    files = prefix.files()
    images: dict[str, tuple[str, str]] = {}
    for file in sorted(files):
        stem, _, extension = file.rpartition(".")
        if extension.lower() in IMAGE_EXTENSIONS and f"{stem}.txt" in files:
            other, _ = images.setdefault(safe_key(stem), (file, f"{stem}.txt"))
            if other != file:
                raise UserError(
                    setting,
                    f"{other} and {file} share one caption file",
                    "rename or remove one of them",
                )

    versions = [(name, files[name]) for names in sorted(images.values()) for name in names]
    # A name on a disk may be no UTF-8.
    words = json.dumps(versions, separators=(",", ":"), ensure_ascii=False)
    content = sha256(words.encode(errors="surrogateescape"))
    settings = {"path": config.path, "count": len(images), "content": content}
    pairs = sorted((key, *names) for key, names in images.items())
    return Source(len(pairs), settings, lambda first, last: pairs[first:last])


def folder_part(config: FolderSource, pairs: list[tuple[str, str, str]]) -> Part:
    """The pairs of keys, images and caption files."""
    prefix, setting = open_prefix(config.path, "source.path"), f"source.path={config.path}"
    names = {key: (image, caption) for key, image, caption in pairs}

    def content(name: str, most: int) -> bytes:
        _require_inside(prefix, name, setting)
        try:
            return read_capped(prefix, name, most)
        except FileNotFoundError as error:
            raise BadSample(setting, name, NO_FILE, "leads nowhere, or was removed") from error

    def pair(key: str) -> Pair:
        image_name, caption_name = names[key]
        image = image_of(content(image_name, MAX_BYTES), setting, image_name)
        text = content(caption_name, MAX_TEXT_BYTES)
        if len(text) > MAX_TEXT_BYTES:
            raise BadSample(setting, image_name, BAD_CAPTION, f"more than {MAX_TEXT_BYTES:,} bytes")
        caption = text_of(text, setting, image_name)
        meta = {"original_size": list(image.shape[:2]), "group": key}
        return Pair(key, image, caption, meta)

    return Part(tuple(names), pair)


def _require_inside(prefix: Prefix, name: str, setting: str) -> None:
    """Refuse a link out of the folder, and what is no file: reading a pipe would never end.

    Whoever packed a folder must not choose files of this machine.

    Raises:
        BadSample: It is one.
    """
    if prefix.local is None:
        return
    file = os.path.realpath(prefix.path(name))
    if not Path(file).is_relative_to(os.path.realpath(prefix.local)):
        raise BadSample(setting, name, NO_FILE, "is a link out of the folder")
    if not os.path.isfile(file):  # noqa: PTH113 - Path's own raises what it may not look at
        raise BadSample(setting, name, NO_FILE, "is a pipe, a device, or not there")
