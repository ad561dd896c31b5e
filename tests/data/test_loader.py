import itertools
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.loader import (
    dump_array,
    image_batches,
    image_of,
    latent_batches,
    load_array,
    pad_text,
    read_ahead,
    training_places,
)
from data.order import Order
from data.sample import MOMENTS, TEXT, RawSample
from data.stream import open_dataset
from data.tar import CorruptShard
from tests.helpers.datasets import (
    CHANNELS,
    LATENT_SIZE,
    TEXT_WIDTH,
    flip_bit,
    latent_samples,
    pickled_array,
    tiny_image,
    write_images,
    write_latents,
)


def _readers():
    return [one for one in threading.enumerate() if one.name.startswith("read-ahead")]


def _order(dataset, seed=3):
    return Order([shard.samples for shard in dataset.manifest.shards], seed, block_shards=2)


# --- reading ahead


@pytest.mark.parametrize("threads", [1, 2, 5])
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


def test_jobs_run_at_the_same_time():
    both = threading.Barrier(2, timeout=10)
    assert len(list(read_ahead([both.wait] * 2, threads=2))) == 2


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


def test_image_batches_hold_what_was_written(url):
    write_images(url, 4, 3, 2)
    dataset = open_dataset(url, "images")
    order = _order(dataset)
    batches = list(image_batches(dataset, order, [range(0, 4), range(4, 11)], threads=2))
    assert [batch.places.tolist() for batch in batches] == [list(range(4)), list(range(4, 11))]
    first_of_shard = (0, 4, 7)
    for batch in batches:
        samples = order.samples(batch.places[0], batch.places[-1] + 1)
        numbers = [first_of_shard[shard] + row for shard, row in samples]
        assert batch.keys == [f"s{number}" for number in numbers]
        assert batch.captions == [f"caption {number}" for number in numbers]
        assert [meta["number"] for meta in batch.metas] == numbers
        assert np.array_equal(batch.images, [tiny_image(number) for number in numbers])
        assert batch.images.dtype == np.uint8


def test_latent_batches_hold_what_was_written(tmp_path):
    write_latents(str(tmp_path), 4, 3)
    dataset = open_dataset(str(tmp_path), "latents")
    (batch,) = latent_batches(dataset, _order(dataset), [range(5, 12)], threads=1)
    samples = {sample.key: sample.members for sample in latent_samples(7)}
    assert batch.moments.shape == (7, 2 * CHANNELS, LATENT_SIZE, LATENT_SIZE)
    assert batch.moments.dtype == batch.text.dtype == np.float32
    assert batch.text.shape == (7, batch.text_mask.sum(1).max(), TEXT_WIDTH)
    for i, key in enumerate(batch.keys):
        assert np.array_equal(batch.moments[i], load_array(samples[key][MOMENTS]))
        text = load_array(samples[key][TEXT])
        assert np.array_equal(batch.text[i][batch.text_mask[i]], text)
        assert batch.text_mask[i].tolist() == [True] * len(text) + [False] * (
            batch.text.shape[1] - len(text)
        )


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(("world_size", "micro"), [(1, 12), (2, 3), (3, 4), (4, 1)])
def test_ranks_read_the_global_batch_between_them(tmp_path, world_size, micro, threads):
    write_images(str(tmp_path), 5, 4)
    dataset = open_dataset(str(tmp_path), "images")
    order = _order(dataset)
    keys = {}
    for rank in range(world_size):
        places = training_places(24, 12, micro, rank, world_size)
        steps = 12 // (micro * world_size)
        batches = image_batches(dataset, order, itertools.islice(places, steps), threads)
        keys |= {p: k for batch in batches for p, k in zip(batch.places, batch.keys, strict=True)}
    (whole,) = image_batches(dataset, order, [range(24, 36)], threads=1)
    assert [keys[place] for place in range(24, 36)] == whole.keys


def test_a_damaged_sample_stops_the_batches_at_its_place(tmp_path):
    write_images(str(tmp_path), 8)
    dataset = open_dataset(str(tmp_path), "images")
    order = _order(dataset)
    _, row = order.samples(5, 6)[0]
    entry = dataset.index(0)[row]
    shard = tmp_path / "shards" / "00000.tar"
    shard.write_bytes(flip_bit(shard.read_bytes(), 8 * int(entry["offset"][0])))
    places = [range(i, i + 2) for i in range(0, 8, 2)]
    batches = image_batches(dataset, order, places, threads=2)
    assert [next(batches).places.tolist(), next(batches).places.tolist()] == [[0, 1], [2, 3]]
    with pytest.raises(CorruptShard, match=f"{entry['key'].decode()}.png: bytes"):
        next(batches)


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "webp"])
def test_an_image_may_have_any_of_the_formats(tmp_path, extension):
    from PIL import Image

    Image.new("RGB", (8, 6), (9, 9, 9)).save(tmp_path / f"a.{extension}")
    sample = RawSample("a", {extension: (tmp_path / f"a.{extension}").read_bytes(), "txt": b""})
    assert image_of(sample).shape == (6, 8, 3)


# --- arrays


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 4))
def test_padding_keeps_every_token_and_marks_it(lengths, width):
    chance = np.random.default_rng(0)
    texts = [chance.standard_normal((length, width)).astype(np.float16) for length in lengths]
    padded, mask = pad_text(texts)
    assert padded.shape == (len(texts), max(lengths), width)
    assert padded.dtype == np.float32 and mask.dtype == np.bool_
    assert mask.sum(1).tolist() == lengths
    assert not padded[~mask].any()
    assert np.array_equal(padded[mask], np.concatenate(texts))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_arrays_read_back(dtype):
    array = np.arange(6, dtype=dtype).reshape(2, 3)
    read = load_array(dump_array(array))
    assert np.array_equal(read, array) and read.dtype == dtype
    assert dump_array(array) == dump_array(array.copy())


def test_nothing_is_unpickled():
    with pytest.raises(ValueError, match="pickled"):
        load_array(pickled_array())
    with pytest.raises(ValueError, match="allow_pickle=False"):
        dump_array(np.array([None], dtype=object))


def test_reading_imports_no_torch():
    modules = ["data.stream", "data.loader", "data.verify"]
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert json.loads(done.stdout.lower()) is False
