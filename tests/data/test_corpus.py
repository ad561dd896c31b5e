from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from conf.errors import UserError
from conf.groups import DataConfig
from data.corpus import Corpus, open_corpus
from data.loader import training_places
from data.manifest import Manifest, Shard
from data.stream import Dataset, open_dataset
from tests.helpers.datasets import BUCKETS, write_bucketed, write_images, write_latents


@pytest.fixture
def bucketed(tmp_path):
    """Two datasets: of 5, 7 and 3 samples of three buckets, and of 4 and 2 of two."""
    write_bucketed(str(tmp_path / "a"), "00112", "1110", "22110", "0")
    write_bucketed(str(tmp_path / "b"), "0020", "02")
    return [open_dataset(str(tmp_path / name), "images") for name in "ab"]


def _corpus(datasets, weights=None, seed=3, batch_size=4):
    return Corpus(datasets, weights, seed, block_shards=2, batch_size=batch_size)


def _bucket_of(corpus, sample):
    dataset = corpus.datasets[sample.dataset]
    return dataset.manifest.buckets[int(dataset.index(sample.shard)[sample.row]["bucket"])]


# --- one dataset of one size


def test_one_dataset_is_read_in_its_order(tmp_path):
    write_images(str(tmp_path), 4, 0, 3, 5)
    corpus = _corpus([open_dataset(str(tmp_path), "images")])
    for epoch in range(4):
        samples = corpus.locate(range(12 * epoch, 12 * epoch + 12))
        assert len(set(samples)) == 12
        assert Counter(sample.shard for sample in samples) == {0: 4, 2: 3, 3: 5}
        assert [(s.shard, s.row) for s in samples] == [
            tuple(pair) for pair in corpus.order.samples(12 * epoch, 12 * epoch + 12)
        ]


# --- buckets and mixtures


@pytest.mark.parametrize("weights", [None, [1, 1], [5, 1]])
def test_a_batch_is_of_one_bucket(bucketed, weights):
    corpus = _corpus(bucketed, weights)
    seen = set()
    for start in range(0, 400, 4):
        buckets = {_bucket_of(corpus, sample) for sample in corpus.locate(range(start, start + 4))}
        assert buckets == {corpus.bucket_at(start)}
        seen |= buckets
    assert seen == set(BUCKETS) == set(corpus.buckets)


@pytest.mark.parametrize("weights", [None, [1, 3]])
def test_every_sample_of_a_part_comes_once_before_any_comes_again(bucketed, weights):
    corpus = _corpus(bucketed, weights)
    read = corpus.locate(range(4000))
    for part in corpus.parts:
        bucket = bucketed[part.dataset].manifest.buckets[part.bucket]
        own = [s for s in read if s.dataset == part.dataset and _bucket_of(corpus, s) == bucket]
        for start in range(0, len(own) - part.samples, part.samples):
            assert len(set(own[start : start + part.samples])) == part.samples


def test_no_shard_is_opened_twice_in_an_epoch(tmp_path):
    """Not even of the largest blocks, and where buckets come to the borders of theirs apart."""
    write_bucketed(str(tmp_path), *["01"] * 130)
    corpus = open_corpus(DataConfig(url=str(tmp_path), block_shards=32), "images", 4)
    open_shard = corpus.main.open_shard
    for start in range(0, 260 - 4, 4):
        for _, shard in corpus.shards_ahead(start):
            open_shard(shard)
        for sample in corpus.locate(range(start, start + 4)):
            open_shard(sample.shard)
        if start < 96:  # places at which the next epoch is not looked at
            assert open_shard.cache_info().misses <= 130
    assert open_shard.cache_info().misses <= 130 + 2 * 32


def test_samples_come_as_often_as_they_are_without_weights(bucketed):
    corpus = _corpus(bucketed)
    counts = Counter(corpus.locate(range(21 * 400)))
    assert len(counts) == corpus.samples == 21
    assert max(abs(count - 400) for count in counts.values()) < 8


def test_datasets_come_by_weight(bucketed):
    counts = Counter(s.dataset for s in _corpus(bucketed, [1, 3]).locate(range(4000)))
    assert abs(counts[1] - 3000) < 20


@pytest.mark.parametrize("weights", [None, [2, 1]])
def test_any_cut_gives_the_same_samples(bucketed, weights):
    corpus = _corpus(bucketed, weights)
    whole = corpus.locate(range(30))
    for start, stop in combinations(range(31), 2):
        assert corpus.locate(range(start, stop)) == whole[start:stop]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("steps", [1, 2])
def test_global_batches_are_the_same_for_any_ranks(bucketed, world_size, steps):
    """A run that goes on from any place on other ranks reads what the first would have read."""
    corpus = _corpus(bucketed, [2, 1], batch_size=48)
    micro = 48 // (world_size * steps)
    for start in (0, 48, 480):
        ranks = [training_places(start, 48, micro, rank, world_size) for rank in range(world_size)]
        batch = [s for _ in range(steps) for rank in ranks for s in corpus.locate(next(rank))]
        assert batch == corpus.locate(range(start, start + 48))


def test_every_seed_has_an_order_of_its_own(bucketed):
    orders = [tuple(_corpus(bucketed, seed=seed).locate(range(40))) for seed in range(5)]
    assert len(set(orders)) == 5


def test_the_shards_that_come_next_are_told_ahead(bucketed):
    corpus = _corpus(bucketed)
    for place in (0, 3, 50, 1001):
        ahead = corpus.shards_ahead(place)
        assert len(set(ahead)) == len(ahead)
        needed = corpus.locate(range(place, place + 1))
        assert {(sample.dataset, sample.shard) for sample in needed} <= set(ahead)


def _imagined(shards, samples):
    """A dataset that is only a manifest."""
    records = tuple(
        Shard(f"{i:06d}", f"shards/{i:06d}.tar", (samples,), 1, "0", "0") for i in range(shards)
    )
    manifest = Manifest("latents", ((8, 8),), ("txt",), records, "", {})
    return Dataset(None, manifest)


def test_a_billion_samples_need_no_list_of_a_billion():
    """Its first use of an epoch sorts shards, not samples."""
    import tracemalloc

    corpus = _corpus([_imagined(10_000, 100_000)])
    tracemalloc.start()
    try:
        for place in (0, 10**9 - 4, 9 * 10**8, 10**14):
            assert len(corpus.locate(range(place, place + 4))) == 4
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert corpus.samples == 10**9
    assert peak < 100e6


# --- opening


def _open(kind, url, *also, **settings):
    config = DataConfig(url=str(url), also=[str(one) for one in also], **settings)
    return open_corpus(config, kind, batch_size=4)


def test_datasets_are_opened_in_their_order(tmp_path):
    for i, name in enumerate("abc"):
        write_images(str(tmp_path / name), i + 1)
    corpus = _open("images", *(tmp_path / name for name in "abc"), weights=[1, 1, 2])
    assert [dataset.manifest.samples for dataset in corpus.datasets] == [1, 2, 3]
    assert corpus.main is corpus.datasets[0]


def test_a_dataset_without_samples_is_refused(tmp_path):
    write_images(str(tmp_path / "a"), 1)
    write_images(str(tmp_path / "b"), 0)
    with pytest.raises(UserError, match=rf"^data.also={tmp_path}/b: has no samples"):
        _open("images", tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match=rf"^data.url={tmp_path}/b: has no samples"):
        _open("images", tmp_path / "b")


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("latents", {"autoencoder": "x"}, "latents of another autoencoder"),
        ("latents", {"dtype": "float32"}, "latents in another number format"),
        ("text", {"encoder": "x"}, "captions of another text encoder"),
        ("text", {"dtype": "float32"}, "text embeddings in another number format"),
    ],
)
def test_latents_that_mean_something_else_are_not_mixed(tmp_path, part, change, words):
    for name in "ab":
        manifest = write_latents(str(tmp_path / name), 2)
    assert len(_open("latents", tmp_path / "a", tmp_path / "b").datasets) == 2
    other = replace(manifest, **{part: replace(getattr(manifest, part), **change)})
    (tmp_path / "b" / "manifest.json").write_bytes(other.to_json())
    with pytest.raises(UserError, match=f"^data.also={tmp_path}/b: has {words} than data.url"):
        _open("latents", tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("world_size", "memory_gb", "whole"), [(1, 6.0, True), (2, 6.0, False), (1, 0.0, False)]
)
def test_only_a_rank_that_reads_every_byte_holds_shards_in_memory(world_size, memory_gb, whole):
    url = f"memory://held-{world_size}-{memory_gb}"
    write_images(url, 3, 2)
    config = DataConfig(url=url, memory_gb=memory_gb)
    corpus = open_corpus(config, "images", 4, world_size)
    assert corpus.main.whole is whole
    assert [corpus.main.read(shard, 0).key for shard in (0, 1)] == ["s0", "s3"]
    assert (corpus.main.open_shard(0).content is not None) is whole


@pytest.mark.parametrize(
    "change", [{"latents": None}, {"text": None}, {"members": ("a", "b", "c")}]
)
def test_latents_that_mean_nothing_are_refused(tmp_path, change):
    manifest = write_latents(str(tmp_path / "a"), 2)
    (tmp_path / "a" / "manifest.json").write_bytes(replace(manifest, **change).to_json())
    with pytest.raises(UserError, match="does not say what its latents and texts mean"):
        _open("latents", tmp_path / "a")


def test_remote_shards_come_through_the_local_cache(url, tmp_path):
    write_images(url, 3, 2)
    corpus = _open("images", url, local_cache=str(tmp_path / "kept"))
    read = [corpus.main.read(shard, 0).key for shard in (0, 1)]
    assert read == ["s0", "s3"]
    kept = list((tmp_path / "kept").glob("*.shard"))
    assert len(kept) == (0 if corpus.main.prefix.local else 2)


def test_kept_shards_that_rotted_are_fetched_again(tmp_path):
    url = "memory://rotten"
    write_images(url, 3)
    corpus = _open("images", url, local_cache=str(tmp_path / "kept"))
    first = corpus.main.read(0, 1)
    (kept,) = (tmp_path / "kept").glob("*.shard")
    with kept.open("r+b") as file:  # in place, under the mapping
        file.seek(int(corpus.main.index(0)[1]["offset"][0]))
        file.write(b"rotten")
    assert corpus.main.read(0, 1) == first
    assert np.array_equal(
        [corpus.main.read(0, row).key for row in range(3)], [f"s{row}" for row in range(3)]
    )
