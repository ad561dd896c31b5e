"""The samples that every loader of `benchmarks/data.py` stores and reads: the same bytes for all.

Owns the shapes and the check that what was read is what was written. Needs numpy alone, since it is
imported in the environment of every peer.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

BATCH = 32
# Moments and text of one sample, float16. Stable Diffusion 2 at 512 pixels with all 77 tokens, and
# 192 pixels with a short caption of a small encoder.
SHAPES = {
    "223 KB": ((8, 64, 64), (77, 1024)),
    "16 KB": ((8, 24, 24), (9, 384)),
}
SAMPLES = {"223 KB": 4096, "16 KB": 49_152}
SHARD_BYTES = 2**26
_POOL = 2**22


def sample_bytes(kind: str) -> int:
    """Bytes of the numbers of one sample."""
    return sum(2 * math.prod(shape) for shape in SHAPES[kind])


def samples(kind: str) -> Iterator[tuple[int, Any, Any]]:
    """Number, moments and text of every sample."""
    pool = np.random.default_rng(0).standard_normal(_POOL).astype(np.float16)
    moments_shape, text_shape = SHAPES[kind]

    def cut(shape: tuple[int, ...], start: int) -> Any:
        size = math.prod(shape)
        start %= _POOL - size
        return pool[start : start + size].reshape(shape)

    for i in range(SAMPLES[kind]):
        yield i, cut(moments_shape, 7919 * i), cut(text_shape, 104_729 * i)


def digest(batch: tuple[Any, Any]) -> int:
    """A sum over the bits of a batch; over an epoch, whatever its order, always the same."""
    return sum(int(np.asarray(part).view(np.uint16).sum(dtype=np.uint64)) for part in batch)


def expected_digest(kind: str) -> int:
    """The digest of a whole epoch."""
    return sum(digest((moments, text)) for _, moments, text in samples(kind))
