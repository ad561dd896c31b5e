"""What the numbers of a dataset of latents mean."""

import math
import re
from dataclasses import dataclass
from typing import Any, TypeVar

from data.sample import MEAN, MOMENTS, POOLED, TEXT, TOKENS

S = TypeVar("S")

# Number formats and how their numbers lie in .npy files, which know no bfloat16.
STORED_AS = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """What the latents of a dataset mean.

    A final latent is (z - shift) * scale per channel, where z is drawn from the stored mean and
    log-variance, or is the stored mean.

    Args:
        channels: Latent channels C; moments have 2C.
        size: Height and width of a latent of the square bucket.
        downsampling: Pixels to a side of one latent pixel.
        dtype: Number format in the shards; bfloat16 lies there as its bits, in uint16.
        autoencoder: Fingerprint of the autoencoder's weights.
        mean: Measured mean of z per channel.
        std: Measured standard deviation of z per channel.
        shift: Subtracted per channel.
        scale: Then multiplied per channel.
        stored: `moments` (mean and log-variance) or `mean`.
        scaling: Where shift and scale come from: `measured` here, or `published` with the weights.
        views: What is stored of each image, in words, the first one always.
        posterior_std: Root mean square over the set of the standard deviation that z is drawn with,
            per channel: what is lost where only means are stored.
        rms_error: Root mean square of what the number format changed, in units of the standard
            deviation of all latents.
        max_error: The most that it changed, in the same units.
        skipped: Samples of the images that are missing here, because they could not be decoded.
    """

    channels: int
    size: int
    downsampling: int
    dtype: str
    autoencoder: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    stored: str = "moments"
    scaling: str = "measured"
    views: tuple[str, ...] = ("center",)
    posterior_std: tuple[float, ...] = ()
    rms_error: float = 0.0
    max_error: float = 0.0
    skipped: int = 0

    @property
    def member(self) -> str:
        """Extension of the first view's member."""
        return MOMENTS if self.stored == "moments" else MEAN

    @property
    def members(self) -> tuple[str, ...]:
        """Extensions of all views' members."""
        return numbered(self.member, len(self.views))

    @property
    def stored_channels(self) -> int:
        """Channels of what is stored."""
        return 2 * self.channels if self.stored == "moments" else self.channels


@dataclass(frozen=True, slots=True)
class TextSpec:
    """What the captions of a dataset of latents mean.

    Args:
        encoder: Fingerprint of the text encoder and its tokenizer.
        width: Channels of an embedding.
        max_length: Longest caption in tokens.
        dtype: Number format of embeddings in the shards.
        empty_sha256: Hash of what is stored of the empty caption, in the file `empty`.
        stored: `embeddings` or `ids` (of tokens, to be embedded in training).
        captions: The most captions that a sample has.
        padding: Whether captions are filled up to `max_length` and the filling is used.
        pooled_width: Channels of the vector that stands for a whole caption; 0 is none.
        empty_pooled_sha256: Hash of that of the empty caption, in `empty.pooled.npy`.
        models: Text models side by side.
        classes: How many classes there are where captions are numbers of classes, each two digits
            to a base of 256 in place of an embedding; 0 where captions are words.
    """

    encoder: str
    width: int
    max_length: int
    dtype: str
    empty_sha256: str
    stored: str = "embeddings"
    captions: int = 1
    padding: bool = False
    pooled_width: int = 0
    empty_pooled_sha256: str = ""
    models: int = 1
    classes: int = 0

    @property
    def member(self) -> str:
        """Extension of the first caption's member."""
        return TEXT if self.stored == "embeddings" else TOKENS

    @property
    def members(self) -> tuple[str, ...]:
        """Extensions of all captions' members; a sample may lack all but the first."""
        return numbered(self.member, self.captions)

    @property
    def pooled_members(self) -> tuple[str, ...]:
        """Extensions of the vectors of all captions, if they are stored."""
        stored = self.pooled_width and self.stored == "embeddings"
        return numbered(POOLED, self.captions) if stored else ()

    @property
    def empty(self) -> str:
        """Name of the file of the empty caption."""
        return f"empty.{self.member}"


EMPTY_POOLED = "empty.pooled.npy"


def numbered(extension: str, count: int) -> tuple[str, ...]:
    """Extensions of several members of one kind: text.npy, text1.npy and so on."""
    name, _, kind = extension.partition(".")
    return tuple(f"{name}{number or ''}.{kind}" for number in range(count))


def parse_spec(kind: type[S], raw: dict[str, Any] | None) -> S | None:
    """A spec from JSON, held against what it can be.

    Raises:
        TypeError: It has other fields.
        ValueError: A value cannot be.
    """
    if raw is None:
        return None
    spec = kind(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    )
    if isinstance(spec, LatentSpec):
        require_sound_latents(spec)
    if isinstance(spec, TextSpec):
        require_sound_text(spec)
    return spec


def require_sound_latents(spec: LatentSpec) -> None:
    """Refuse what no command writes.

    Raises:
        ValueError: A value is of another kind.
    """
    counts = (spec.channels, spec.size, spec.downsampling, spec.skipped)
    require(all(map(is_count, counts)) and spec.downsampling > 0, "latents of no size")
    require(spec.dtype in STORED_AS, "latents of no floats")
    require(spec.stored in ("moments", "mean"), "latents that are stored in no known way")
    require(spec.scaling in ("measured", "published"), "latents that are scaled in no known way")
    require(0 < len(spec.views) < 2**10, "latents of no views")
    require(all(isinstance(view, str) for view in spec.views), "views without names")
    for name in ("shift", "scale"):
        require(len(getattr(spec, name)) == spec.channels, f"{name} of other channels")
    for name in ("mean", "std", "posterior_std"):  # not measured where they are not needed
        require(len(getattr(spec, name)) in (0, spec.channels), f"{name} of other channels")
    numbers = (*spec.mean, *spec.std, *spec.shift, *spec.scale, *spec.posterior_std)
    require(
        all(map(is_number, (*numbers, spec.rms_error, spec.max_error))), "numbers that are none"
    )
    require(all(spec.scale), "a scale of zero")


def require_sound_text(spec: TextSpec) -> None:
    """Refuse what no command writes.

    Raises:
        ValueError: A value is of another kind.
    """
    counts = (spec.width, spec.max_length, spec.captions, spec.pooled_width, spec.models)
    require(all(map(is_count, (*counts, spec.classes))), "texts of no size")
    require(0 < spec.captions < 2**10 and spec.models > 0, "samples of no captions")
    require(spec.dtype in STORED_AS, "texts of no floats")
    require(spec.stored in ("embeddings", "ids"), "texts that are stored in no known way")
    require(isinstance(spec.padding, bool), "padding that is neither true nor false")
    words = (spec.encoder, spec.empty_sha256, spec.empty_pooled_sha256)
    require(all(isinstance(word, str) for word in words), "hashes that are none")


def require(right: bool, wrong: str) -> None:
    """Refuse a value.

    Raises:
        ValueError: It is not right.
    """
    if not right:
        raise ValueError(wrong)


def is_count(value: object, most: int = 2**62) -> bool:
    """Whether a value is a whole number from 0 to `most`."""
    return type(value) is int and 0 <= value <= most


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_hash(value: object) -> bool:
    """Whether a value is a SHA-256 in hex."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
