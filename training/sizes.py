"""Bytes of a training's state, by the sizes of its parameters: one arithmetic for all who ask."""

import math
from collections.abc import Sequence

from conf.enums import OptimizerKind
from conf.training import CheckpointConfig, TrainingConfig

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


def kept_checkpoints(config: CheckpointConfig, samples: int) -> int:
    """Checkpoints that are there when a training of so many samples ends, at the most."""
    for_good = samples // config.keep_every_samples if config.keep_every_samples else 0
    return (
        min(config.keep_last, math.ceil(samples / config.every_samples))
        + for_good
        + config.keep_best
    )


def kept_snapshots(config: TrainingConfig) -> int:
    """Copies of the averages of which others are rebuilt that are there when a training ends."""
    return config.samples // config.ema_snapshot_every_samples


def run_bytes(
    sizes: Sequence[int],
    optimizer: OptimizerKind,
    train: TrainingConfig,
    checkpoint: CheckpointConfig,
) -> int:
    """The most bytes that a training writes and keeps: a new checkpoint comes before one goes."""
    checkpoints = kept_checkpoints(checkpoint, train.samples) + 1
    snapshots = kept_snapshots(train) * snapshot_bytes(sizes, train.ema_lengths)
    return checkpoints * checkpoint_bytes(sizes, optimizer, train.ema_lengths) + snapshots
