import io
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import fsspec
import numpy as np
import pytest

from conf.errors import UserError
from data import ranges
from data.manifest import sha256
from data.ranges import read_spans
from data.sample import RawSample
from data.storage import Prefix, open_prefix
from data.stream import Dataset, open_dataset
from data.tar import CorruptShard, index_tar
from tests.helpers.datasets import (
    IMAGE_MEMBERS,
    LATENT_MEMBERS,
    flip_bit,
    latent_samples,
    pickled_array,
    raw_samples,
    write_dataset,
    write_images,
    write_latents,
)


def _read_all(dataset):
    return [
        dataset.read(number, row)
        for number, shard in enumerate(dataset.manifest.shards)
        for row in range(shard.samples)
    ]


def _dump(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _pinning(prefix, index):
    """The dataset with another index of its first shard, and a manifest that pins it."""
    dataset = open_dataset(str(prefix), "any")
    first, *others = dataset.manifest.shards
    (prefix / first.index).write_bytes(index)
    shards = (replace(first, index_sha256=sha256(index)), *others)
    return Dataset(dataset.prefix, replace(dataset.manifest, shards=shards))


# --- reading


def test_images_read_back(url):
    write_images(url, 3, 1, 2)
    assert _read_all(open_dataset(url, "images")) == raw_samples(6)


def test_latents_read_back(url):
    write_latents(url, 2, 3)
    assert _read_all(open_dataset(url, "latents")) == latent_samples(5)


def test_missing_and_empty_members_read_back(url):
    samples = [RawSample("a", {"txt": b""}), RawSample("b", {"png": b"1", "txt": b"2"})]
    write_dataset(url, [samples], IMAGE_MEMBERS)
    assert _read_all(open_dataset(url, "images")) == samples


def test_keys_are_counted_by_the_indexes_alone(raw):
    dataset = open_dataset(str(raw), "images")
    keys = [sample.key for sample in raw_samples(5)]
    for shard in dataset.manifest.shards:
        (raw / shard.tar).unlink()
    assert dataset.count_keys(keys) == 5
    assert dataset.count_keys([keys[0], keys[4], "none of them", f"{keys[1]}0"]) == 2


@pytest.mark.parametrize("url", ["memory", "s3"], indirect=True)
def test_a_sample_is_one_range_of_its_shard(url, monkeypatch):
    write_images(url, 3, 2)
    dataset = open_dataset(url, "images")
    asked = []

    def counted(prefix, spans):
        asked.extend(spans)
        return read_spans(prefix, spans)

    monkeypatch.setattr("data.stream.read_spans", counted)
    assert _read_all(dataset) == raw_samples(5)
    assert [span.name for span in asked] == ["shards/00000.tar"] * 3 + ["shards/00001.tar"] * 2
    assert max(span.length for span in asked) < 4 * 512 + 3 * 512


def test_the_samples_of_a_batch_are_asked_for_at_once(monkeypatch):
    write_images("memory://at-once", 3, 2)
    dataset = open_dataset("memory://at-once", "images")
    asked = []
    monkeypatch.setattr(
        "data.stream.read_spans", lambda p, spans: asked.append(len(spans)) or read_spans(p, spans)
    )
    samples = [(0, 2), (1, 0), (0, 1), (1, 1)]
    (found,) = dataset.columns(samples, [1])
    assert [found.member(i).copy() for i in range(4)] == [
        f"caption {number}".encode() for number in (2, 3, 1, 4)
    ]
    assert asked == [4]


@pytest.mark.parametrize("url", ["memory", "s3"], indirect=True)
def test_remote_shards_are_read_whole_where_there_is_room_for_them(url, monkeypatch):
    """Each once, whoever wants it at the same time."""
    largest = max(shard.bytes for shard in write_images(url, 3, 2).shards)
    pieces, spans = [], []
    read = ranges.read_pieces
    monkeypatch.setattr(ranges, "read_pieces", lambda *a: pieces.append(a[1]) or read(*a))
    monkeypatch.setattr("data.stream.read_spans", lambda *a: spans.append(a[1]) or read_spans(*a))
    whole = open_dataset(url, "images", memory=2 * largest)
    with ThreadPoolExecutor(8) as pool:
        read_at_once = list(pool.map(lambda _: _read_all(whole), range(8)))
    assert read_at_once == [raw_samples(5)] * 8
    assert (sorted(pieces), spans) == (["shards/00000.tar", "shards/00001.tar"], [])
    assert _read_all(open_dataset(url, "images", memory=2 * largest - 1)) == raw_samples(5)
    assert (len(pieces), len(spans)) == (2, 5)


def test_a_shard_in_memory_that_was_damaged_on_the_way_is_read_again(monkeypatch):
    write_images("memory://damaged", 3)
    read = ranges.read_pieces
    faults = [b"?"]

    def damaged(*arguments):
        for piece in read(*arguments):
            yield piece if not faults else memoryview(faults.pop() * len(piece))

    monkeypatch.setattr(ranges, "read_pieces", damaged)
    dataset = open_dataset("memory://damaged", "images", memory=10**9)
    assert dataset.whole and _read_all(dataset) == raw_samples(3)
    assert not faults


@pytest.mark.parametrize("change", [-512, 512])
def test_a_shard_in_memory_of_another_length_is_noticed(change):
    name = f"memory://length{change}"
    write_images(name, 3)
    content = fsspec.filesystem("memory").cat_file(f"{name}/shards/00000.tar")
    content = content + bytes(change) if change > 0 else content[:change]
    fsspec.filesystem("memory").pipe_file(f"{name}/shards/00000.tar", content)
    dataset = open_dataset(name, "images", memory=10**9)
    if change > 0:  # what stands behind the shard is not read
        assert _read_all(dataset) == raw_samples(3)
    else:
        with pytest.raises(CorruptShard, match=r"00000\.tar: has [\d,]+ bytes, its manifest says"):
            dataset.read(0, 0)


def test_an_index_is_read_once(raw, monkeypatch):
    dataset = open_dataset(str(raw), "images")
    names = []
    read = Prefix.read
    monkeypatch.setattr(Prefix, "read", lambda *a: names.append(a[1]) or read(*a))
    assert _read_all(dataset) + _read_all(dataset) == raw_samples(5) * 2
    assert names == ["index/00000.npy", "index/00001.npy"]


def test_more_shards_than_are_kept_open(tmp_path):
    write_images(str(tmp_path / "raw"), 1, 1, 1, 1, 1)
    opened = open_dataset(str(tmp_path / "raw"), "images")
    dataset = Dataset(opened.prefix, opened.manifest, open_shards=2)
    assert _read_all(dataset) + _read_all(dataset) == raw_samples(5) * 2
    assert dataset.index.cache_info().currsize == 2


def test_threads_may_share_a_dataset(raw):
    dataset = open_dataset(str(raw), "images")
    places = [(number % 5 // 3, number % 5 % 3) for number in range(400)]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda place: dataset.read(*place).key, places))
    assert read == [f"s{number % 5}" for number in range(400)]


# --- what is refused


def test_a_dataset_of_another_kind_is_refused(raw):
    with pytest.raises(UserError, match="latents are needed"):
        open_dataset(str(raw), "latents")


def test_nothing_is_no_dataset(url):
    with pytest.raises(UserError, match=f"^checkpoint={url}: holds no dataset"):
        open_dataset(url, "any", "checkpoint")


def test_a_flipped_bit_is_named_or_does_not_matter(raw):
    shard = raw / "shards" / "00000.tar"
    whole, samples = shard.read_bytes(), raw_samples(5)
    chance = random.Random(0)
    found = 0
    for _ in range(200):
        shard.write_bytes(flip_bit(whole, chance.randrange(8 * len(whole))))
        dataset = open_dataset(str(raw), "images")
        for row in range(3):
            try:
                assert dataset.read(0, row) == samples[row]
            except CorruptShard as error:
                found += 1
                assert f"shards/00000.tar: s{row}." in str(error)
                assert " bytes " in str(error)
        assert dataset.read(1, 0) == samples[3]
    assert found > 10


def test_a_shard_that_was_cut_is_found_on_every_storage(url):
    write_images(url, 3)
    out = open_prefix(url, "out")
    whole = out.read("shards/00000.tar")
    for length in (len(whole.rstrip(b"\0")) - 1, 700, 0):
        out.write("shards/00000.tar", whole[:length])
        wrong = "are not those of the index" if out.local is None else f"has {length:,} bytes, its"
        with pytest.raises(CorruptShard, match=wrong):
            open_dataset(url, "images").read(0, 2)


@pytest.mark.parametrize("name", ["shards/00001.tar", "index/00001.npy"])
def test_a_missing_file_is_named(url, name):
    write_images(url, 3, 2)
    open_prefix(url, "out").remove(name)
    dataset = open_dataset(url, "images")
    assert dataset.read(0, 0).key == "s0"
    with pytest.raises(CorruptShard, match=f"{name}: is missing$"):
        dataset.read(1, 0)


def test_shards_that_changed_places_are_found(raw):
    first, second = raw / "shards" / "00000.tar", raw / "shards" / "00001.tar"
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    dataset = open_dataset(str(raw), "images")
    for number, row in ((0, 0), (0, 2), (1, 0), (1, 1)):
        with pytest.raises(CorruptShard):
            dataset.read(number, row)


def test_indexes_that_changed_places_are_found(raw):
    first, second = raw / "index" / "00000.npy", raw / "index" / "00001.npy"
    first.write_bytes(second.read_bytes())
    with pytest.raises(CorruptShard, match=r"00000.npy: is not the index that the manifest pins"):
        open_dataset(str(raw), "images").read(0, 0)


def test_a_damaged_index_is_found_wherever_it_is(raw):
    index = raw / "index" / "00000.npy"
    whole = index.read_bytes()
    for place in range(0, len(whole), 7):
        index.write_bytes(flip_bit(whole, 8 * place))
        with pytest.raises(CorruptShard, match="is not the index"):
            open_dataset(str(raw), "images").read(0, 0)


def test_an_index_that_does_not_fit_its_manifest_is_refused(raw):
    content = (raw / "shards" / "00000.tar").read_bytes()
    for index in (
        index_tar(content, IMAGE_MEMBERS, "")[:2],
        index_tar(content, ("png",), ""),
        index_tar(content, IMAGE_MEMBERS, "")[["key", "offset"]],
    ):
        with pytest.raises(CorruptShard, match="is no index that fits"):
            _pinning(raw, _dump(index)).read(0, 0)


def test_what_is_no_index_is_refused_and_never_unpickled(raw):
    for content in (pickled_array(), b"no array", _dump(np.zeros(3))):
        with pytest.raises(CorruptShard, match="is no index"):
            _pinning(raw, content).read(0, 0)


def test_latent_members_lie_in_their_order():
    assert LATENT_MEMBERS == ("moments.npy", "text.npy", "json")
