"""The records that travel through the pipeline, and the names of a sample's members in a tar."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CAPTION = "txt"
META = "json"
MOMENTS = "moments.npy"
MEAN = "mean.npy"
TEXT = "text.npy"
TOKENS = "tokens.npy"
POOLED = "pooled.npy"
MAX_TEXT_BYTES = 2**20  # of a caption, a json, or a row of a table
IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")


def caption_text(content: bytes) -> str:
    """The caption that a text file holds: without a byte order mark, and stripped.

    Raises:
        UnicodeDecodeError: It is no UTF-8.
    """
    return content.decode("utf-8-sig").strip()


@dataclass(frozen=True, slots=True)
class Pair:
    """One image and its caption, as a source yields them.

    Args:
        key: Unique in the dataset; ASCII letters, digits, `-`, `_` and `~` only.
        image: RGB, uint8, (H, W, 3), as large as the source has it.
        caption: The caption, any language.
        meta: What else is known, JSON-ready.
    """

    key: str
    image: NDArray[np.uint8]
    caption: str
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RawSample:
    """The members of one sample as they lie in the tar: extension to bytes.

    Args:
        key: The sample's key.
        members: Extension to bytes.
        bucket: Number of the dataset's bucket that its image or latent has the size of.
    """

    key: str
    members: dict[str, bytes]
    bucket: int = 0


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """A micro-batch of images.

    Args:
        places: Places in the order of samples, int64, (B,).
        keys: Sample keys.
        images: uint8, (B, H, W, 3).
        captions: One caption an image.
        metas: The samples' JSON members.
    """

    places: NDArray[np.int64]
    keys: list[str]
    images: NDArray[np.uint8]
    captions: list[str]
    metas: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class LatentBatch:
    """A micro-batch of cached latents.

    Args:
        places: Places in the order of samples, int64, (B,).
        moments: Raw mean and log-variance, (B, 2C, H, W), or mean alone, (B, C, H, W), as stored.
        text: Text embeddings padded with zeros, (B, L, D), as stored, or ids of tokens, int32,
            (B, L, number of text models).
        text_mask: True at real tokens, (B, L).
        pooled: A vector for each caption, (B, P), as stored, or None.
    """

    places: NDArray[np.int64]
    moments: NDArray[Any]
    text: NDArray[Any]
    text_mask: NDArray[np.bool_]
    pooled: NDArray[Any] | None = None
