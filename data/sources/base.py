"""What all sources share: the record that they give, and how they say that a sample is bad."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.errors import UserError
from data.image import MAX_BYTES, BadImage, decode_image
from data.manifest import canonical_json
from data.sample import Pair, caption_text
from data.say import one_line
from data.sources.tabular import BadRow, json_object
from data.storage import Prefix

BAD_IMAGE = "bad image"
NO_IMAGE = "no image"
NO_CAPTION = "no caption"
BAD_CAPTION = "caption is no text"
BAD_META = "bad json"
TOO_LARGE = "too large"
REMEDY = "mend or remove it, or allow a max_bad_share"
MAX_WORDS = 300  # characters of a message that come from the source


@dataclass(frozen=True, slots=True)
class Source:
    """What a source holds, found out once, by the process that hands out the work.

    Args:
        samples: How many pairs there are. Each has its number, whoever makes it.
        settings: What decides the pairs' content, JSON-ready: part of the dataset's identity.
        part: What another process needs to make the pairs from one number up to another, so that
            it need not look again. It can be pickled, and is small.
    """

    samples: int
    settings: dict[str, Any]
    part: Callable[[int, int], Any]


@dataclass(frozen=True, slots=True)
class Part:
    """The pairs of a part of a source.

    Args:
        keys: Their keys, in the order of their numbers.
        pair: Makes the pair of a key, its image as large as it was found; raises `BadSample`.
    """

    keys: tuple[str, ...]
    pair: Callable[[str], Pair]


class BadSource(UserError):
    """A source that cannot be used as it is."""


class BadSample(UserError):
    """A sample that cannot be used; it stops the command unless `max_bad_share` has room for it.

    Args:
        setting: The setting that names the source.
        where: The sample: its file, row or member.
        kind: What is wrong in two or three words, the same for all samples of that fault.
        detail: What exactly is wrong, if there is more to say. It comes into a file of the dataset,
            so it must be the same in every run.
    """

    def __init__(self, setting: str, where: str, kind: str, detail: str = "") -> None:
        where, detail = _short_line(where), _short_line(detail)
        super().__init__(setting, f"{where}: {detail or kind}", REMEDY)
        self.where, self.kind, self.detail = where, kind, detail
        self.args = (setting, where, kind, detail)  # so that it can be pickled


def _short_line(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= MAX_WORDS else f"{line[:MAX_WORDS]}..."


def image_of(content: bytes, setting: str, where: str) -> NDArray[np.uint8]:
    """Decode a sample's image, uint8 (H, W, 3).

    Raises:
        BadSample: It cannot be decoded.
    """
    try:
        return decode_image(content)
    except BadImage as error:
        raise BadSample(setting, where, BAD_IMAGE, str(error)) from error


def text_of(content: bytes, setting: str, where: str) -> str:
    """Decode a sample's caption.

    Raises:
        BadSample: It is not UTF-8.
    """
    try:
        return caption_text(content)
    except UnicodeDecodeError as error:
        raise BadSample(setting, where, BAD_CAPTION, str(error)) from error


def meta_member(content: bytes | None, setting: str, where: str) -> dict[str, Any]:
    """What a sample's json says; nothing if it has none.

    Raises:
        BadSample: It is no JSON object that can be written again.
    """
    try:
        found = json_object(content) if content is not None else {}
    except BadRow as error:
        raise BadSample(setting, where, BAD_META, f"its json {error}") from error
    if not is_writable(found):
        raise BadSample(setting, where, BAD_META, "its json has half of a surrogate pair")
    return found


def caption_member(found: Mapping[str, Any], name: str, setting: str, where: str) -> str:
    """The caption in a sample's json.

    Raises:
        BadSample: It has none there.
    """
    caption = found.get(name)
    if not isinstance(caption, str) or not caption.strip():
        raise BadSample(setting, where, NO_CAPTION, f"its json has no text {name!r}")
    return caption.strip()


def read_capped(prefix: Prefix, name: str, most: int = MAX_BYTES) -> bytes:
    """A file of an image; of one that is too large only what shows that.

    Raises:
        FileNotFoundError: There is none.
    """
    return prefix.read_range(name, 0, most + 1)


def meta_of(found: Mapping[str, Any], key: str, image: NDArray[np.uint8]) -> dict[str, Any]:
    """A pair's metadata: what the source says of it and what we add.

    `group` names pairs that belong together, for `ldm evaluate`; a source may give it.
    """
    group = found.get("group")
    return {
        **found,
        "group": key if group is None else str(group),
        "original_size": list(image.shape[:2]),
    }


def is_writable(value: Any) -> bool:
    """Whether a value can be written as JSON in UTF-8: no half of a surrogate pair is in it."""
    try:
        canonical_json(value)
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def safe_key(stem: str) -> str:
    """A key without dots, slashes or anything else that tar readers treat specially."""
    return "".join(
        c if c.isascii() and (c.isalnum() or c in "-_") else f"~{ord(c):x}~" for c in stem
    )
