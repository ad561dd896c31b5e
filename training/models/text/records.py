"""What passes between the parts of a text encoder."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Tokens:
    """Captions as token ids.

    Attributes:
        ids: One array (E, L) a caption, for E joined models (1 where there is one) and L tokens,
            special tokens among them; with `padding`, L is `max_length` for all.
        truncated: How many of the captions were cut to `max_length`.
    """

    ids: list[NDArray[np.int32]]
    truncated: int


@dataclass(frozen=True, slots=True)
class TextEncoding:
    """Captions, encoded token by token.

    Attributes:
        embeddings: (B, L, D) float32, 0 at padding; L is the batch's longest caption in tokens, or
            what was asked for.
        mask: (B, L) bool, True at tokens to be used, which come first: the real ones, or with
            `padding` all `max_length` of them.
        truncated: How many of the captions were cut to `max_length`; 0 where ids were embedded.
        pooled: (B, P) float32, one vector a caption, where the settings ask for it.
    """

    embeddings: Tensor
    mask: Tensor
    truncated: int
    pooled: Tensor | None = None


class Tokenizer(Protocol):
    """Captions to token ids, special tokens among them.

    Attributes:
        pad_id: What fills up a row; None where the tokenizer names none.
        least: Fewest tokens of a caption that has a word.
        most: The longest that it was made for; None is any length.
    """

    pad_id: int | None
    least: int
    most: int | None

    def tokenize(self, captions: list[str], max_length: int) -> tuple[list[list[int]], list[bool]]:
        """Ids of each caption, `max_length` at most, and whether it was cut."""
        ...


@dataclass(frozen=True, slots=True)
class TextModel:
    """One text model, loaded.

    Attributes:
        tower: Takes ids (B, L) int64 and a mask (B, L) bool of real tokens, or None to use all;
            gives embeddings (B, L, width) and what is pooled, (B, pooled_width) or None.
        tokenizer: Its own.
        width: Width of the embeddings.
        pooled_width: Width of what is pooled; 0 where nothing is.
        most: Most tokens that it has positions for; None is any number.
        fingerprint: SHA-256 of the files that it was loaded from.
        classes: Classes that it is a list of; 0 where it is a model of words.
    """

    tower: nn.Module
    tokenizer: Tokenizer
    width: int
    pooled_width: int
    most: int | None
    fingerprint: str
    classes: int = 0
