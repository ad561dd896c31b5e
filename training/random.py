"""Randomness keyed by (seed, place, purpose): never global."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a draw is for; each purpose has a stream of its own."""

    posterior = 0
    noise = 1
    timestep = 2
    caption = 3
    evaluation = 4
    sampling = 5
    dropout = 6
    offset = 7
    perturbation = 8


# Digests of normal draws, while `noted_draws` asks for them.
_noted: list[bytes] | None = None


@contextmanager
def noted_draws() -> Iterator[list[bytes]]:
    """Digests of all rows of normal noise that are drawn within a block, in one thread."""
    global _noted
    _noted = noted = []
    try:
        yield noted
    finally:
        _noted = None


def generator(seed: int, place: int, purpose: Purpose, draw: int = 0) -> np.random.Generator:
    """A generator for one sample, purpose and draw.

    Philox is counter-based: seed and place are its key, purpose and draw the counter's high words.
    Source: Salmon et al. 2011.
    """
    mask = 2**64 - 1
    philox = np.random.Philox(key=[seed & mask, place & mask], counter=[0, 0, draw, int(purpose)])
    return np.random.Generator(philox)


def normal(
    seed: int, places: Iterable[int], purpose: Purpose, shape: tuple[int, ...], draw: int = 0
) -> Tensor:
    """Standard normal noise, float32, (B, *shape), one row a place."""
    rows = [
        generator(seed, int(place), purpose, draw).standard_normal(shape, dtype=np.float32)
        for place in places
    ]
    if _noted is not None:
        _noted.extend(blake2b(row.tobytes(), digest_size=16).digest() for row in rows)
    return torch.from_numpy(np.stack(rows))


def uniform(seed: int, places: Iterable[int], purpose: Purpose) -> Tensor:
    """Uniform draws from [0, 1), float64, (B,), one a place."""
    draws = [generator(seed, int(place), purpose).random() for place in places]
    return torch.tensor(draws, dtype=torch.float64)


def step_seed(seed: int, place: int, rank: int) -> int:
    """Seed of torch's own generator for one step of a rank: dropout, the one draw not of ours."""
    return int(generator(seed, place, Purpose.dropout, rank).integers(2**62))
