"""The order of samples as a pure function of (shard sizes, seed, place).

A place counts samples from the start of the run, over all epochs and ranks. In each epoch the
shards are permuted, then the samples within every block of neighbouring shards. Nothing here
depends on world size, workers, restarts or the clock, nor on a library's random generator: the
permutations are argsorts of a fixed integer hash.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

UINT64 = NDArray[np.uint64]


def mix(values: UINT64) -> UINT64:
    """The finaliser of SplitMix64, a bijection on 64-bit integers.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", fig. 15.
    """
    z = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hashes(size: int, *key: int) -> UINT64:
    """As many different hashes as told, which depend on `key` alone."""
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = mix(state ^ mix(np.array([part], dtype=np.uint64)))
    return mix(state + mix(np.arange(size, dtype=np.uint64)))


def hashes_of(places: NDArray[np.int64], *key: int) -> UINT64:
    """A hash for each place, which depends on it and on `key` alone."""
    return mix(places.astype(np.uint64) ^ mix(hashes(1, *key)))


def permutation(size: int, *key: int) -> NDArray[np.int64]:
    """A permutation of range(size) that depends on `key` alone."""
    return np.argsort(hashes(size, *key), kind="stable")


class Order:
    """Which sample comes at which place.

    Args:
        counts: Samples of each shard, in the manifest's order.
        seed: Seed of all permutations.
        block_shards: Shards whose samples are permuted together; so many are open at once.
        first_shard: Number of the first shard, where several orders share one numbering.
    """

    def __init__(
        self, counts: Sequence[int], seed: int, block_shards: int, first_shard: int = 0
    ) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.seed = seed
        self.block_shards = block_shards
        self.first_shard = first_shard
        self.epoch_samples = int(self.counts.sum())
        if self.epoch_samples == 0:
            raise ValueError("an order needs at least one sample")
        # The block that is being read and the next, on each side of an epoch's end.
        self._block = lru_cache(maxsize=4)(self._permuted_block)
        self._epoch = lru_cache(maxsize=2)(self._permuted_shards)

    def samples(self, start: int, stop: int) -> NDArray[np.int64]:
        """The samples at places `start` to `stop`.

        Returns:
            (stop - start, 2): for every place the shard's number in the manifest and the row in
            that shard.
        """
        parts = []
        while start < stop:
            epoch, block, within = self._block_at(start)
            rows = self._block(epoch, block)[within:][: stop - start]
            parts.append(rows)
            start += len(rows)
        return np.concatenate(parts) if parts else np.empty((0, 2), dtype=np.int64)

    def shards_ahead(self, place: int) -> list[int]:
        """The shards of the block at `place` and of the next, in the order of need."""
        epoch, block, _ = self._block_at(place)
        shards, block_ends = self._epoch(epoch)
        if block + 1 < len(block_ends):
            first = block * self.block_shards
            ahead = shards[first : first + 2 * self.block_shards]
        else:
            following, _ = self._epoch(epoch + 1)
            ahead = np.concatenate(
                [shards[block * self.block_shards :], following[: self.block_shards]]
            )
        return [int(shard) + self.first_shard for shard in ahead if self.counts[shard]]

    def _block_at(self, place: int) -> tuple[int, int, int]:
        """Epoch and block of a place, and its place within the block."""
        epoch, within = divmod(place, self.epoch_samples)
        _, block_ends = self._epoch(epoch)
        block = int(np.searchsorted(block_ends, within, side="right"))
        return epoch, block, within - (int(block_ends[block - 1]) if block else 0)

    def _permuted_shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's shard order, and the place within the epoch at which each block ends."""
        shards = permutation(len(self.counts), self.seed, epoch)
        ends = np.cumsum(self.counts[shards])
        last_of_block = np.arange(self.block_shards - 1, len(shards), self.block_shards)
        if len(shards) % self.block_shards:
            last_of_block = np.append(last_of_block, len(shards) - 1)
        return shards, ends[last_of_block]

    def _permuted_block(self, epoch: int, block: int) -> NDArray[np.int64]:
        shards, _ = self._epoch(epoch)
        members = shards[block * self.block_shards : (block + 1) * self.block_shards]
        counts = self.counts[members]
        rows = np.concatenate([np.arange(count) for count in counts])
        samples = np.stack([np.repeat(members + self.first_shard, counts), rows], axis=1)
        return samples[permutation(len(samples), self.seed, epoch, block)]


def rank_places(
    batch_start: int, accumulation_step: int, micro_batch_size: int, rank: int, world_size: int
) -> range:
    """The places of one rank's micro-batch within the global batch that starts at `batch_start`.

    Ranks and accumulation steps cut the global batch into neighbouring pieces, so that the batch
    holds the same samples for every world size.
    """
    start = batch_start + (accumulation_step * world_size + rank) * micro_batch_size
    return range(start, start + micro_batch_size)
