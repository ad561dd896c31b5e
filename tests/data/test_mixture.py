from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.mixture import PERIOD, Mixture, apportion, spread
from data.order import Order

WEIGHTS = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20)


def _parts():
    """Orders of 7, 30 and 1 samples, whose shards are numbered 0, 1 and 2, 3 and 4."""
    return [
        Order([4, 3], seed=1, block_shards=1),
        Order([10, 20], seed=2, block_shards=2, first_shard=2),
        Order([1], seed=3, block_shards=1, first_shard=4),
    ]


def _mixture(unit=1, seed=5):
    return Mixture(_parts(), [2, 1, 1], seed, unit)


def _part_of(shards):
    return np.searchsorted([2, 4], shards, side="right")


# --- shares


@given(WEIGHTS, st.integers(20, 5000))
def test_shares_add_up_and_none_is_empty(weights, slots):
    counts = apportion(weights, slots)
    assert counts.sum() == slots and counts.min() >= 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_shares_are_met_exactly_where_they_can_be(weights):
    assert apportion(weights, sum(weights) * 7).tolist() == [7 * weight for weight in weights]


@given(WEIGHTS)
def test_shares_are_met_to_within_one_where_none_is_small(weights):
    exact = np.array(weights) / sum(weights) * PERIOD
    if exact.min() >= 1:
        assert np.abs(apportion(weights, PERIOD) - exact).max() < 1


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 2**32))
def test_turns_are_spread_evenly(counts, seed):
    turns = spread(np.array(counts), seed)
    assert np.bincount(turns, minlength=len(counts)).tolist() == counts
    for part, count in enumerate(counts):
        sofar = np.cumsum(turns == part)
        fair = np.arange(1, len(turns) + 1) * count / len(turns)
        # Each part is at most one turn off its own even pace, and others shift it by as much.
        assert np.abs(sofar - fair).max() <= 1 + len(counts)


def test_turns_are_not_regular():
    assert len({tuple(spread(np.array([50, 50]), 0)[i : i + 10]) for i in range(0, 100, 10)}) > 5


# --- the mixture


def test_every_part_is_read_in_its_own_order():
    mixed = _mixture().samples(0, 400)
    for number, part in enumerate(_parts()):
        own = mixed[_part_of(mixed[:, 0]) == number]
        assert own.tolist() == part.samples(0, len(own)).tolist()


def test_parts_come_by_weight():
    parts = [Order([10**6], seed, block_shards=1, first_shard=seed) for seed in range(3)]
    part = Mixture(parts, [2, 1, 1], seed=5).samples(0, PERIOD)[:, 0]
    assert np.bincount(part).tolist() == [PERIOD // 2, PERIOD // 4, PERIOD // 4]


def test_any_cut_gives_the_same_mixture():
    mixture = _mixture(unit=3)
    whole = mixture.samples(0, 40).tolist()
    for start, stop in combinations(range(41), 2):
        assert mixture.samples(start, stop).tolist() == whole[start:stop]


@given(st.integers(0, 10**13), st.integers(0, 60), st.integers(0, 60), st.integers(1, 9))
def test_two_neighbouring_pieces_are_one(start, first, second, unit):
    mixture = _mixture(unit)
    middle, stop = start + first, start + first + second
    pieces = [*mixture.samples(start, middle), *mixture.samples(middle, stop)]
    assert np.array_equal(np.reshape(pieces, (-1, 2)), mixture.samples(start, stop))


def test_pieces_meet_where_periods_do():
    mixture = _mixture()
    whole = mixture.samples(PERIOD - 50, PERIOD + 50).tolist()
    assert mixture.samples(PERIOD - 50, PERIOD).tolist() == whole[:50]
    assert mixture.samples(PERIOD, PERIOD + 50).tolist() == whole[50:]


@pytest.mark.parametrize("unit", [1, 4, 12])
def test_a_unit_is_of_one_part(unit):
    part = _part_of(_mixture(unit).samples(0, 50 * unit)[:, 0]).reshape(-1, unit)
    assert (part == part[:, :1]).all()
    assert len(set(part[:, 0].tolist())) == 3


def test_mixtures_of_mixtures_keep_the_parts_orders():
    parts = _parts()
    mixture = Mixture([Mixture(parts[:2], [1, 3], seed=1), parts[2]], [3, 1], seed=2, unit=8)
    mixed = mixture.samples(0, 800)
    for number, part in enumerate(_parts()):
        own = mixed[_part_of(mixed[:, 0]) == number]
        assert own.tolist() == part.samples(0, len(own)).tolist()
    assert mixture.samples(333, 401).tolist() == mixed[333:401].tolist()


def test_every_period_and_every_seed_has_turns_of_its_own():
    turns = [
        _part_of(_mixture(seed=seed).samples(place, place + 100)[:, 0]).tolist()
        for seed in (0, 1)
        for place in (0, PERIOD, 2 * PERIOD)
    ]
    assert all(one != other for one, other in combinations(turns, 2))


def test_the_mixture_never_changes():
    """A run that goes on with another version must go on with the same samples."""
    assert _mixture().samples(10**9, 10**9 + 8).tolist() == [
        [0, 0],
        [1, 2],
        [4, 0],
        [3, 0],
        [1, 0],
        [3, 9],
        [1, 1],
        [4, 0],
    ]


# --- what will be needed


@pytest.mark.parametrize("place", [0, 3, 17, 36, 37, 38, 200])
def test_the_shards_that_come_next_are_told_ahead(place):
    for sequence in (*_parts(), _mixture(), _mixture(unit=4)):
        ahead = sequence.shards_ahead(place)
        assert len(set(ahead)) <= len(ahead)
        needed = sequence.samples(place, place + 4)[:, 0].tolist()
        assert set(needed) <= set(ahead)


def test_shards_ahead_are_the_rest_of_this_block_and_the_next():
    order = Order([4] * 6, seed=2, block_shards=2)
    epochs = [order.samples(24 * epoch, 24 * epoch + 24)[:, 0].tolist() for epoch in (0, 1)]
    blocks = [set(epoch[i : i + 8]) for epoch in epochs for i in (0, 8, 16)]
    for block in range(5):
        ahead = order.shards_ahead(8 * block + 3)
        assert set(ahead[:2]) == blocks[block]
        assert set(ahead[2:]) == blocks[block + 1]


def test_a_shard_without_samples_is_not_fetched():
    assert Order([3, 0, 2], seed=0, block_shards=3).shards_ahead(0)[:2] in ([0, 2], [2, 0])
