"""Several orders as one: which of them gives the sample at a place, by weight.

Places are cut into slots of `unit` samples, and slots into periods. In each period a part has a
fixed number of slots, spread evenly but not regularly. How often a part came before any place is
therefore known without counting, and each part is read in its own order, every sample once in each
of its own epochs.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.order import hashes

# Slots of a period: weights are met to within one in this many.
PERIOD = 2**16


class Sequenced(Protocol):
    """What gives samples by place: an `Order`, or a mixture of such."""

    def samples(self, start: int, stop: int) -> NDArray[np.int64]:
        """Shard and row at places `start` to `stop`, (stop - start, 2)."""

    def shards_ahead(self, place: int) -> list[int]:
        """The shards that are read at `place` and soon after, in the order of need."""


def apportion(weights: Sequence[float], slots: int) -> NDArray[np.int64]:
    """Share slots out by weight: largest remainders, and none goes empty.

    Args:
        weights: Above 0.
        slots: At least as many as there are weights.

    Returns:
        One count a weight; their sum is `slots`.
    """
    exact = np.asarray(weights, dtype=np.float64) * slots / sum(weights)
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    while (missing := slots - int(counts.sum())) != 0:
        step = 1 if missing > 0 else -1
        can = counts + step > 0
        gap = np.where(can, (exact - counts) * step, -np.inf)
        most = np.argsort(-gap, kind="stable")[: min(abs(missing), int(can.sum()))]
        counts[most] += step
    return counts


def spread(counts: NDArray[np.int64], *key: int) -> NDArray[np.int64]:
    """The parts in the order of a period's slots, part i `counts[i]` times.

    Each part's n-th slot lies at a random place in the n-th of its equal shares of the period, so
    that in any stretch every part comes about as often as it should.
    """
    parts = np.repeat(np.arange(len(counts)), counts)
    nth = np.arange(len(parts)) - np.repeat(np.cumsum(counts) - counts, counts)
    chance = (hashes(len(parts), *key) >> np.uint64(11)) * 2.0**-53
    return parts[np.argsort((nth + chance) / counts[parts], kind="stable")]


class Mixture:
    """Parts that take turns by weight.

    Args:
        parts: What is mixed; their shards are numbered apart from each other.
        weights: Of the parts, in any unit, above 0.
        seed: Seed of the turns.
        unit: Samples in a row from one part. The batch size makes every batch one of a single part.
    """

    def __init__(
        self, parts: Sequence[Sequenced], weights: Sequence[float], seed: int, unit: int = 1
    ) -> None:
        self.parts = parts
        self.counts = apportion(weights, PERIOD)
        self.seed = seed
        self.unit = unit
        self._period = lru_cache(maxsize=2)(self._turns)

    def samples(self, start: int, stop: int) -> NDArray[np.int64]:
        """Shard and row at places `start` to `stop`, (stop - start, 2)."""
        places = np.arange(start, stop)
        part, place_in_part = self._parts_at(places)
        found = np.empty((len(places), 2), dtype=np.int64)
        for number in np.unique(part):
            here = part == number
            first = int(place_in_part[here][0])  # from there on they follow each other
            found[here] = self.parts[number].samples(first, first + int(here.sum()))
        return found

    def shards_ahead(self, place: int) -> list[int]:
        """The shards that are read at `place` and soon after, those of all parts in turn."""
        period, slot = divmod(place // self.unit, PERIOD)
        before = period * self.counts + np.bincount(
            self._period(period)[0][:slot], minlength=len(self.counts)
        )
        lists = [
            part.shards_ahead(int(count) * self.unit)
            for part, count in zip(self.parts, before, strict=True)
        ]
        longest = max(map(len, lists))
        return [one[i] for i in range(longest) for one in lists if i < len(one)]

    def _parts_at(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each place its part, and its place within that part."""
        slots, within = np.divmod(places, self.unit)
        periods, slots = np.divmod(slots, PERIOD)
        part, nth = np.empty_like(places), np.empty_like(places)
        for period in np.unique(periods).tolist():
            here = periods == period
            turns, earlier = self._period(period)
            part[here] = turns[slots[here]]
            nth[here] = period * self.counts[part[here]] + earlier[slots[here]]
        return part, nth * self.unit + within

    def _turns(self, period: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each slot of a period its part, and how often that came earlier in the period."""
        turns = spread(self.counts, self.seed, period)
        by_part = np.argsort(turns, kind="stable")
        earlier = np.empty_like(turns)
        earlier[by_part] = np.arange(PERIOD) - np.repeat(
            np.cumsum(self.counts) - self.counts, self.counts
        )
        return turns, earlier
