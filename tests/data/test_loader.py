import itertools
import json
import subprocess
import sys
import threading
import time

import pytest

from data import loader
from data.collate import ImageCollator
from data.corpus import Corpus
from data.loader import Loader, batches, own_share_first, read_ahead
from data.stream import open_dataset
from data.tar import CorruptShard
from tests.helpers.datasets import flip_bit, write_images

WHOLE = ImageCollator(0)


def _readers():
    return [
        one for one in threading.enumerate() if one.name.startswith(("read-ahead", "open-ahead"))
    ]


# --- reading ahead


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
def test_results_come_in_the_order_of_the_jobs(threads):
    def job(number):
        def run():
            time.sleep(0.002 * (number * 7 % 5))
            return number

        return run

    assert list(read_ahead(map(job, range(30)), threads)) == list(range(30))
    assert list(read_ahead([], threads)) == []


def test_jobs_run_beside_the_reader_but_not_far_ahead():
    started = []
    results = read_ahead((lambda n=n: started.append(n) or n for n in itertools.count()), threads=2)
    for number in range(20):
        assert next(results) == number
        assert len(started) <= number + 1 + 4
    deadline = time.monotonic() + 10
    while len(started) < 24:  # two a thread, while nobody reads
        assert time.monotonic() < deadline
        time.sleep(0.001)
    results.close()


def test_without_threads_a_job_runs_when_its_result_is_asked_for():
    started = []
    results = read_ahead((lambda n=n: started.append(n) or n for n in itertools.count()), threads=0)
    for number in range(3):
        assert len(started) == number
        assert next(results) == number
    results.close()


def test_jobs_run_at_the_same_time():
    both = threading.Barrier(2, timeout=10)
    assert len(list(read_ahead([both.wait] * 2, threads=2))) == 2


@pytest.mark.parametrize("world_size", [1, 4, 16])
def test_shards_are_asked_for_before_they_are_read_whatever_the_batch(tmp_path, world_size):
    """A global batch of many ranks may be longer than a block."""
    write_images(str(tmp_path), *[4] * 20)
    corpus = Corpus([open_dataset(str(tmp_path), "images")], None, 0, 2, world_size)
    asked, shards_ahead = {}, corpus.shards_ahead

    def asking(place):
        asked[place] = shards_ahead(place)
        return asked[place]

    corpus.shards_ahead = asking
    places = (range(start, start + 1) for start in range(0, 400, world_size))
    for read in batches(corpus, lambda corpus, places: places, places, 1):
        last = max(place for place in asked if place <= read.start)
        assert {(0, sample.shard) for sample in corpus.locate(read)} <= set(asked[last])


def test_an_error_comes_out_at_its_place():
    def fail():
        raise CorruptShard("here")

    results = read_ahead([lambda: 0, lambda: 1, fail, lambda: 3], threads=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(CorruptShard, match="here"):
        next(results)
    assert _readers() == []


def test_an_error_of_the_places_comes_out_after_what_was_read():
    def jobs():
        yield lambda: 0
        raise RuntimeError("no more places")

    with pytest.raises(RuntimeError, match="no more places"):
        list(read_ahead(jobs(), threads=2))
    assert _readers() == []


def test_threads_end_with_the_reader():
    started = []
    jobs = (lambda n=n: started.append(n) or time.sleep(0.01) for n in itertools.count())
    results = read_ahead(jobs, threads=3)
    next(results)
    assert len(_readers()) == 3
    results.close()
    assert _readers() == []
    number = len(started)
    time.sleep(0.05)
    assert len(started) == number


def test_jobs_that_wait_are_not_begun_once_the_reader_left():
    started = []
    jobs = (lambda n=n: started.append(n) or time.sleep(0.3 * (n == 1)) for n in itertools.count())
    results = read_ahead(jobs, threads=1)
    next(results)  # 1 runs, 2 waits for the thread
    results.close()
    assert 2 not in started


def test_threads_end_with_the_jobs():
    assert list(read_ahead([lambda: 1] * 5, threads=3)) == [1] * 5
    assert _readers() == []


# --- batches


def _corpus(folder, *counts, batch_size=12):
    write_images(str(folder), *counts)
    return Corpus([open_dataset(str(folder), "images")], None, 3, 2, batch_size)


def _loader(corpus, micro=12, rank=0, world_size=1, threads=2):
    return Loader(corpus, WHOLE, 12, micro, rank, world_size, threads)


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize(("world_size", "micro"), [(1, 12), (2, 3), (3, 4), (4, 1)])
def test_ranks_read_the_global_batch_between_them(tmp_path, world_size, micro, threads):
    corpus = _corpus(tmp_path, 5, 4)
    keys = {}
    for rank in range(world_size):
        loader = _loader(corpus, micro, rank, world_size, threads)
        loader.load_state_dict({"place": 24})
        for batch in itertools.islice(loader, 12 // (micro * world_size)):
            keys |= dict(zip(batch.places, batch.keys, strict=True))
        loader.close()
    whole = WHOLE(corpus, range(24, 36))
    assert [keys[place] for place in range(24, 36)] == whole.keys


def test_a_loader_that_failed_reads_the_same_place_again(tmp_path):
    corpus = _corpus(tmp_path, 4)
    tar = tmp_path / corpus.main.manifest.shards[0].tar
    whole = tar.read_bytes()
    tar.write_bytes(whole[:1000])
    reading = Loader(corpus, WHOLE, 2, 2, 0, 1, threads=1)
    for _ in range(2):
        with pytest.raises(CorruptShard):
            next(reading)
    tar.write_bytes(whole)
    assert next(reading).places.tolist() == [0, 1]
    reading.close()


def test_a_damaged_sample_stops_the_batches_at_its_place(tmp_path):
    corpus = _corpus(tmp_path, 8)
    ((_, _, row),) = corpus.locate(range(5, 6))
    entry = corpus.main.index(0)[row]
    shard = tmp_path / "shards" / "00000.tar"
    shard.write_bytes(flip_bit(shard.read_bytes(), 8 * int(entry["offset"][0])))
    places = [range(i, i + 2) for i in range(0, 8, 2)]
    read = batches(corpus, WHOLE, places, threads=2)
    assert [next(read).places.tolist(), next(read).places.tolist()] == [[0, 1], [2, 3]]
    with pytest.raises(CorruptShard, match=f"{entry['key'].decode()}.png: bytes"):
        next(read)


def test_shards_are_opened_before_their_samples_are_due(tmp_path):
    corpus = _corpus(tmp_path, *[20] * 12)
    read = batches(corpus, WHOLE, (range(i, i + 2) for i in itertools.count(0, 2)), threads=1)
    next(read)
    deadline = time.monotonic() + 10
    while corpus.main.open_shard.cache_info().currsize < 4:  # two blocks of two
        assert time.monotonic() < deadline
        time.sleep(0.001)
    read.close()
    assert corpus.main.open_shard.cache_info().currsize == 4
    assert _readers() == []


def test_the_block_after_the_next_is_asked_for_before_anybody_waits_for_the_next(tmp_path):
    """Or the link would rest while a reader waits for the last shard of a block."""
    corpus = _corpus(tmp_path, *[20] * 12)  # blocks of two shards, 40 samples
    blocks = [
        {sample.shard for sample in corpus.locate(range(start, start + 40))}
        for start in (0, 40, 80)
    ]
    asked = set()
    open_shard = corpus.main.open_shard
    corpus.main.open_shard = lambda shard: asked.add(shard) or open_shard(shard)
    read = batches(
        corpus, lambda corpus, part: part, (range(i, i + 2) for i in range(0, 999, 2)), 1
    )
    for part in itertools.islice(read, 20):  # all of the first block
        if part.start < 16:
            assert asked <= blocks[0] | blocks[1]
    read.close()
    assert asked == blocks[0] | blocks[1] | blocks[2]


def test_where_samples_are_requests_more_threads_wait_for_them(monkeypatch):
    threads = []
    monkeypatch.setattr(
        loader, "read_ahead", lambda jobs, n: threads.append(n) or read_ahead(jobs, n)
    )
    write_images("memory://waiting", 20, 20)
    for memory, expected in ((0, 8), (10**9, 2)):
        dataset = open_dataset("memory://waiting", "images", memory=memory)
        corpus = Corpus([dataset], None, 0, 2, 2)
        list(batches(corpus, WHOLE, [range(2)], threads=2))
        assert threads.pop() == expected


def test_a_shard_that_cannot_be_opened_ahead_stops_nothing_before_its_place(tmp_path):
    corpus = _corpus(tmp_path, 2, 2, 2, 2)
    shards = [sample.shard for sample in corpus.locate(range(8))]
    (tmp_path / corpus.main.manifest.shards[shards[4]].tar).unlink()
    read = batches(corpus, WHOLE, [range(0, 4), range(4, 8)], threads=1)
    assert len(next(read).keys) == 4
    with pytest.raises(CorruptShard, match="is missing"):
        next(read)


@pytest.mark.parametrize(("rank", "expected"), [(0, "adgbcef"), (1, "beacdfg"), (2, "cfabdeg")])
def test_ranks_of_a_node_open_different_shards_first(monkeypatch, rank, expected):
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert "".join(own_share_first(list("abcdefg"))) == expected


# --- state


def test_a_loader_goes_on_from_any_state(tmp_path):
    corpus = _corpus(tmp_path, 5, 4)
    whole = _loader(corpus, micro=3)
    states, keys = [], []
    for _ in range(12):
        states.append(whole.state_dict())
        keys.append(next(whole).keys)
    whole.close()
    assert states[:3] == [{"place": 0}, {"place": 3}, {"place": 6}]
    for i in range(10):
        again = _loader(corpus, micro=3)
        again.load_state_dict(states[i])
        assert [next(again).keys for _ in range(3)][: 12 - i] == keys[i : i + 3]
        again.close()


def test_a_loader_that_has_read_can_be_set_back(tmp_path):
    loader = _loader(_corpus(tmp_path, 5, 4))
    state = loader.state_dict()
    first = next(loader).keys
    assert next(loader).keys != first
    loader.load_state_dict(state)
    assert next(loader).keys == first
    loader.close()
    assert _readers() == []


def test_a_state_goes_on_with_other_ranks(tmp_path):
    corpus = _corpus(tmp_path, 5, 4)
    loader = _loader(corpus, micro=2, rank=1, world_size=2)
    next(loader)
    state = loader.state_dict()
    loader.close()
    assert state == {"place": 4}
    for world_size in (1, 4):
        places = []
        for rank in range(world_size):
            other = _loader(corpus, 4 // world_size, rank, world_size)
            other.load_state_dict(state)
            places += [p for batch in itertools.islice(other, 2) for p in batch.places.tolist()]
            other.close()
        assert sorted(places) == list(range(4, 12))


def test_a_place_that_the_ranks_do_not_reach_together_is_refused(tmp_path):
    loader = _loader(_corpus(tmp_path, 5), micro=3, world_size=2)
    with pytest.raises(ValueError, match="place 28 is inside of a step of 2 ranks of 3 samples"):
        loader.load_state_dict({"place": 28})
    loader.load_state_dict({"place": 30})


def test_reading_imports_no_torch():
    modules = ["data.collate", "data.loader", "data.verify"]
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert json.loads(done.stdout.lower()) is False
