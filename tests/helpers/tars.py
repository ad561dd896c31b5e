"""WebDataset tars as others make them, well-formed and not."""

import io
import json
import tarfile
from typing import Any

from data.image import encode_png
from data.storage import open_prefix
from data.tar import Member as IndexedMember
from tests.helpers.datasets import tiny_image

PNG = [encode_png(tiny_image(i, 16)) for i in range(6)]

Member = tuple[str, bytes | str] | tarfile.TarInfo


def make_tar(*members: Member) -> bytes:
    """A tar of (name, content), or of headers as they are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            content = content if isinstance(content, bytes) else content.encode()
            item = tarfile.TarInfo(name)
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
    return buffer.getvalue()


def tar_sample(
    number: int, key: str | None = None, meta: Any = None, image: bytes | None = None
) -> list[Member]:
    """The members of a sample: image, caption and, if there is one, json."""
    key = key or f"{number:09d}"
    content = PNG[number] if image is None else image
    members: list[Member] = [(f"{key}.png", content), (f"{key}.txt", f"caption {number}\n")]
    return members if meta is None else [*members, (f"{key}.json", json.dumps(meta))]


def tar_header(name: str, kind: bytes, link: str = "000000000.png") -> tarfile.TarInfo:
    """A member that is no plain file."""
    item = tarfile.TarInfo(name)
    item.type, item.linkname = kind, link
    return item


def indexed_member(content: bytes, row: Any, column: int) -> bytes | None:
    """A member of a tar where its index says, checked; None if the sample has none.

    Args:
        content: The tar.
        row: The sample's row of the index.
        column: The member's column.
    """
    offset, length, crc32 = (int(row[name][column]) for name in ("offset", "length", "crc32"))
    if length < 0:
        return None
    there = memoryview(content)[offset : offset + length]
    return IndexedMember(there, offset, length, crc32, "here").copy()


def write_tars(url: Any, **tars: bytes) -> None:
    """Writes `NAME.tar` for every name."""
    for name, content in tars.items():
        open_prefix(str(url), "out").write(f"{name}.tar", content)
