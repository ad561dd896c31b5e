"""Classes where text embeddings would be: how a class's number lies there, and what a UNet makes of
it.

A number is two digits to a base of 256, because every number format that embeddings are stored in,
bfloat16 too, has whole numbers up to 256 exactly.
"""

import torch
from torch import Tensor, nn

BASE = 256
WIDTH = 2  # digits


def digits_of(numbers: Tensor) -> Tensor:
    """Digits (..., 2), float32, of whole numbers from 0 to 65,535."""
    return torch.stack([numbers // BASE, numbers % BASE], dim=-1).float()


def numbers_of(digits: Tensor) -> Tensor:
    """Whole numbers (...), int64, of digits (..., 2) of any float dtype."""
    high, low = digits.long().unbind(-1)
    return BASE * high + low


class ClassEmbedding(nn.Module):
    """A learned vector for each class, and for no class, which comes after the last.

    Source: Rombach et al. 2022, Appendix E.2.1: a class is one token for cross-attention.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, digits: Tensor) -> Tensor:
        """(B, L, 2) to (B, L, width)."""
        vectors: Tensor = self.table(numbers_of(digits))
        return vectors
