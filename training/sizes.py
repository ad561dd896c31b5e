"""Bytes of a training's state, by the sizes of its parameters: one arithmetic for all who ask."""

from collections.abc import Sequence

from conf.enums import OptimizerKind

BYTES = 4  # of a number in float32
# bitsandbytes: numbers of a moment in 8 bits that share a largest one, and the least parameter of
# which moments are in 8 bits.
BLOCK, LEAST_IN_BYTES = 256, 4096


def moment_bytes(sizes: Sequence[int], optimizer: OptimizerKind) -> int:
    """Bytes of both moments of whole parameters.

    Args:
        sizes: Elements of each parameter.
        optimizer: Which.

    Source: of 8 bits, Dettmers et al. 2022 (arXiv:2110.02861), section 2.1.
    """
    if optimizer is OptimizerKind.adamw:
        return 2 * BYTES * sum(sizes)
    small = sum(size for size in sizes if size < LEAST_IN_BYTES)
    large = [size for size in sizes if size >= LEAST_IN_BYTES]
    return 2 * (BYTES * small + sum(size + BYTES * -(-size // BLOCK) for size in large))


def snapshot_bytes(sizes: Sequence[int], ema_lengths: Sequence[float]) -> int:
    """Bytes of the averages of which others are rebuilt."""
    return BYTES * sum(sizes) * len(ema_lengths)


def checkpoint_bytes(
    sizes: Sequence[int], optimizer: OptimizerKind, ema_lengths: Sequence[float]
) -> int:
    """Bytes of weights, averages and moments, over all ranks."""
    own = 2 * BYTES * sum(sizes)
    return own + snapshot_bytes(sizes, ema_lengths) + moment_bytes(sizes, optimizer)
