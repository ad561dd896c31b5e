"""What is wrong with samples: which ones are drawn, and whether their members can be used."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.image import BadImage, decode_image
from data.manifest import Manifest
from data.npy import parse_npy
from data.order import mix
from data.sample import CAPTION, IMAGE_EXTENSIONS, META
from data.say import one_line
from data.spec import STORED_AS, TextSpec


@dataclass(frozen=True, slots=True)
class Fault:
    """Something broken, for people and, field by field, for programs.

    Args:
        file: The file that is broken.
        kind: `missing`, `unreadable`, `cut`, `longer`, `flipped`, `replaced`, `between samples`,
            `index` or `undecodable`.
        what: What is wrong in words.
        key: Key of the sample.
        member: Extension of the member.
        start: First byte.
        stop: Byte behind the last.
        expected: Hash or checksum that the dataset pins.
        found: What it is instead.
    """

    file: str
    kind: str
    what: str
    key: str | None = None
    member: str | None = None
    start: int | None = None
    stop: int | None = None
    expected: str | None = None
    found: str | None = None

    def __str__(self) -> str:
        sample = f" {self.key}" if self.key is not None else ""
        member = f".{self.member}" if self.member is not None else ""
        place = f" bytes {self.start} to {self.stop}" if self.start is not None else ""
        hashes = ""
        if self.expected and self.found:  # whole they stand in broken.json
            hashes = f" (expected {self.expected[:12]}, found {self.found[:12]})"
        return one_line(f"{self.file}:{sample}{member}{place} {self.what}{hashes}")


def drawn_samples(counts: Sequence[int], samples: int, seed: int) -> dict[int, NDArray[np.int64]]:
    """Draw samples evenly over all shards: one at a random place of each of `samples` equal parts.

    Args:
        counts: Samples of each shard.
        samples: How many to draw; all if there are fewer.
        seed: Seed of the draw.

    Returns:
        The rows drawn from each shard that any were drawn from, ascending.
    """
    ends = np.cumsum(np.asarray(counts, dtype=np.int64))
    total = int(ends[-1]) if len(ends) else 0
    parts = min(samples, total)
    borders = np.array([part * total // parts for part in range(parts + 1)] if parts else [0])
    widths = np.diff(borders)
    key = mix(np.array([seed], dtype=np.uint64))
    chance = mix(key + mix(np.arange(parts, dtype=np.uint64)))
    places = borders[:-1] + (chance % widths.astype(np.uint64)).astype(np.int64)
    shards = np.searchsorted(ends, places, side="right")
    rows = places - np.concatenate([[0], ends])[shards]
    return {int(shard): rows[shards == shard] for shard in np.unique(shards)}


def sample_fault(members: Sequence[str], manifest: Manifest) -> str | None:
    """What a sample lacks, or None."""
    if manifest.kind == "latents":
        optional = {META}  # tars of others may have none
        if manifest.text:  # samples have different numbers of captions
            optional |= {*manifest.text.members[1:], *manifest.text.pooled_members[1:]}
        needed = (name for name in manifest.members if name not in optional)
        lacks = [name for name in needed if name not in members]
        return f"has no {lacks[0]}" if lacks else None
    return None if {*members} & {*IMAGE_EXTENSIONS} else "has no image"


def member_fault(extension: str, content: bytes, bucket: int, manifest: Manifest) -> str | None:
    """Why a member cannot be used, or None.

    Args:
        extension: The member's extension.
        content: Its bytes.
        bucket: The bucket of its sample.
        manifest: What it has to be.
    """
    height, width = manifest.buckets[bucket]
    try:
        if extension in IMAGE_EXTENSIONS:
            size = decode_image(content).shape[:2]
            # The images of tars that were only indexed are brought to their size when read.
            if manifest.tars is None and size != (height, width):
                return f"is an image of {size[0]}x{size[1]}, not {height}x{width} pixels"
        elif extension == META:
            if not isinstance(json.loads(content), dict):
                return "is no JSON object"
        elif extension == CAPTION:
            content.decode("utf-8")
        elif manifest.latents and extension in manifest.latents.members:
            spec = manifest.latents
            sides = (height // spec.downsampling, width // spec.downsampling)
            return _array_fault(parse_npy(content), (spec.stored_channels, *sides), spec.dtype)
        elif manifest.text and extension in manifest.text.members:
            return text_fault(content, manifest.text)
        elif manifest.text and extension in manifest.text.pooled_members:
            return pooled_fault(content, manifest.text)
    except (BadImage, ValueError, RecursionError) as error:
        return f"cannot be read ({error})"
    return None


def text_fault(content: bytes, spec: TextSpec) -> str | None:
    """Why what is stored of a caption cannot be used, or None."""
    try:
        text = parse_npy(content)
    except ValueError as error:
        return f"cannot be read ({error})"
    length = len(text) if text.ndim else 0
    if not 1 <= length <= spec.max_length:
        return f"has {length} tokens, where 1 to {spec.max_length} can be"
    if spec.stored == "embeddings":
        return _array_fault(text, (length, spec.width), spec.dtype)
    if text.shape != (length, spec.models) or text.dtype.str != "<i4":
        return f"is an array of {text.shape} {text.dtype}, not ({length}, {spec.models}) int32"
    return None


def pooled_fault(content: bytes, spec: TextSpec) -> str | None:
    """Why the vector of a caption cannot be used, or None."""
    try:
        return _array_fault(parse_npy(content), (spec.pooled_width,), spec.dtype)
    except ValueError as error:
        return f"cannot be read ({error})"


def _array_fault(array: NDArray[Any], shape: tuple[int, ...], dtype: str) -> str | None:
    if array.shape != shape or array.dtype.str != STORED_AS[dtype]:
        return f"is an array of {array.shape} {array.dtype}, not {shape} {dtype}"
    return None if finite(array) else "has numbers that are not finite"


def finite(array: NDArray[Any]) -> bool:
    """Whether all numbers are finite; uint16 holds the bits of bfloat16."""
    if array.dtype.kind == "u":  # all ones in the exponent
        return not bool(((array & 0x7F80) == 0x7F80).any())
    return bool(np.isfinite(array).all())
