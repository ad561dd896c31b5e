from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loader import training_places
from data.order import Order, mix, permutation, rank_places

GAMMA = 0x9E3779B97F4A7C15
COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)
SEEDS = st.integers(0, 2**32 - 1)
BLOCKS = st.integers(1, 10)


def _epoch(order, number):
    start = number * order.epoch_samples
    return order.samples(start, start + order.epoch_samples).tolist()


# --- the hash and the permutations


def test_mix_is_splitmix64():
    # The n-th output of the generator is its finaliser at seed + n * gamma, counted from 1; `mix`
    # adds the first gamma by itself.
    states = [(1234567 + n * GAMMA) % 2**64 for n in range(3)]
    assert mix(np.array(states, dtype=np.uint64)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_mix_gives_different_hashes_to_different_numbers():
    assert len(np.unique(mix(np.arange(100_000, dtype=np.uint64)))) == 100_000


@pytest.mark.parametrize("size", range(40))
def test_a_permutation_has_everything_once(size):
    assert sorted(permutation(size, 7, size)) == list(range(size))


def test_every_part_of_the_key_counts_and_so_does_its_place():
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    permutations = [tuple(permutation(50, *key)) for key in keys]
    assert len(set(permutations)) == len(keys)


def test_all_permutations_are_as_likely():
    found = [tuple(permutation(3, seed, 0)) for seed in range(6000)]
    counts = [found.count(kind) for kind in set(found)]
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts) < 130  # 4.5 standard deviations


# --- the order


def test_the_order_never_changes():
    """A run that goes on with another version must go on with the same samples."""
    assert permutation(10, 3, 1, 4).tolist() == [0, 1, 6, 9, 4, 3, 2, 7, 8, 5]
    order = Order([5, 3, 7, 2], seed=11, block_shards=2)
    shards, rows = order.samples(0, 20).T.tolist()
    assert shards == [0, 0, 0, 3, 0, 0, 3, 2, 2, 2, 2, 2, 1, 2, 1, 1, 2, 2, 0, 2]
    assert rows == [0, 3, 1, 1, 4, 2, 0, 6, 4, 1, 5, 2, 0, 3, 1, 2, 0, 2, 2, 0]
    assert order.samples(10**12, 10**12 + 3).tolist() == [[2, 6], [1, 1], [2, 2]]


@given(COUNTS, SEEDS, BLOCKS)
def test_every_sample_comes_once_an_epoch(counts, seed, block_shards):
    order = Order(counts, seed, block_shards)
    everything = [[shard, row] for shard, count in enumerate(counts) for row in range(count)]
    for epoch in (0, 1, 1000):
        assert sorted(_epoch(order, epoch)) == everything


def test_any_cut_gives_the_same_order():
    order = Order([4, 1, 0, 3, 2], seed=5, block_shards=2)
    whole = order.samples(0, 30).tolist()
    for start, stop in combinations(range(31), 2):
        assert order.samples(start, stop).tolist() == whole[start:stop]


@given(COUNTS, SEEDS, BLOCKS, st.integers(0, 10**12), st.integers(0, 30), st.integers(0, 30))
def test_two_neighbouring_pieces_are_one(counts, seed, block_shards, start, first, second):
    order = Order(counts, seed, block_shards)
    middle, stop = start + first, start + first + second
    pieces = [*order.samples(start, middle), *order.samples(middle, stop)]
    assert np.array_equal(np.reshape(pieces, (-1, 2)), order.samples(start, stop))


def test_no_places_are_no_samples():
    assert Order([3], 0, 1).samples(2, 2).shape == (0, 2)


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    epochs = [_epoch(Order([20, 20, 20], seed, 2), epoch) for seed in (0, 1) for epoch in range(4)]
    assert all(one != other for one, other in combinations(epochs, 2))


def test_shards_are_permuted_and_so_are_the_samples_of_a_block():
    order = Order([30] * 6, seed=0, block_shards=1)
    epochs = [_epoch(order, epoch) for epoch in range(3)]
    assert len({tuple(shard for shard, _ in epoch[::30]) for epoch in epochs}) == 3
    assert all([row for _, row in epoch[:30]] != list(range(30)) for epoch in epochs)
    mixed = [shard for shard, _ in _epoch(Order([30, 30], 0, 2), 0)]
    assert mixed != sorted(mixed) and mixed != sorted(mixed, reverse=True)


@given(COUNTS, SEEDS, BLOCKS, st.integers(0, 3))
def test_a_block_is_finished_before_the_next_begins(counts, seed, block_shards, epoch):
    shards = [shard for shard, _ in _epoch(Order(counts, seed, block_shards), epoch)]
    first = {shard: shards.index(shard) for shard in set(shards)}
    last = {shard: len(shards) - 1 - shards[::-1].index(shard) for shard in set(shards)}
    for place in range(len(shards)):
        assert sum(first[s] <= place <= last[s] for s in first) <= block_shards


def test_a_block_is_as_many_shards_as_told():
    shards = [shard for shard, _ in _epoch(Order([4] * 7, seed=2, block_shards=3), 0)]
    assert [len(set(shards[i : i + 12])) for i in (0, 12, 24)] == [3, 3, 1]


def test_threads_see_the_same_order():
    order = Order([7, 5, 9, 4], seed=1, block_shards=2)
    whole = order.samples(0, 200).tolist()
    places = [place * 37 % 200 for place in range(200)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda place: order.samples(place, place + 1)[0].tolist(), places))
    assert found == [whole[place] for place in places]


def test_nothing_has_no_order():
    with pytest.raises(ValueError, match="at least one sample"):
        Order([0, 0], seed=0, block_shards=1)


# --- ranks


def _global_batches(batch_size, micro, world_size, start, count):
    """The places of each global batch: first all ranks' first micro-batches, then the second."""
    ranks = [training_places(start, batch_size, micro, r, world_size) for r in range(world_size)]
    steps = batch_size // (micro * world_size)
    for _ in range(count):
        yield [place for _ in range(steps) for rank in ranks for place in next(rank)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_global_batch_is_the_same_for_any_ranks_and_accumulation(world_size, steps):
    micro = 96 // (world_size * steps)
    batches = list(_global_batches(96, micro, world_size, start=1000, count=3))
    assert batches == [list(range(start, start + 96)) for start in (1000, 1096, 1192)]


@settings(max_examples=50)
@given(st.integers(0, 10**9), st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))
def test_ranks_and_steps_cut_a_batch_without_gap_or_overlap(start, micro, world_size, steps):
    pieces = [
        rank_places(start, step, micro, rank, world_size)
        for step in range(steps)
        for rank in range(world_size)
    ]
    assert [place for piece in pieces for place in piece] == list(
        range(start, start + micro * world_size * steps)
    )


def test_a_run_that_resumes_on_other_ranks_sees_the_rest():
    first = list(_global_batches(24, 6, 4, start=0, count=2))
    then = list(_global_batches(24, 4, 2, start=48, count=2))
    assert [place for batch in first + then for place in batch] == list(range(96))
