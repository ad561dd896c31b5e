"""Damage of any kind: what is read is what was written, or an error names what is broken."""

import itertools
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from conf.errors import UserError
from data.collate import ImageCollator, latent_batch
from data.corpus import Corpus
from data.loader import Loader, batches
from data.manifest import EMPTY_TEXT, NAME
from data.storage import open_prefix
from data.stream import open_dataset
from data.tar import CorruptShard, write_tar
from tests.helpers.damage import manifest_of, run_verify
from tests.helpers.datasets import (
    files_of,
    flip_bit,
    latent_samples,
    raw_samples,
    write_images,
    write_latents,
)

FLIPS = 1000
KINDS = {
    "images": (write_images, raw_samples, ImageCollator(0)),
    "latents": (write_latents, latent_samples, latent_batch),
}
COUNTS = (2, 3, 1)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tmp_path):
    """A dataset of either kind with three shards."""
    KINDS[kind][0](str(tmp_path / "dataset"), *COUNTS)
    return tmp_path / "dataset"


def _samples(kind, first=0):
    return KINDS[kind][1](sum(COUNTS), first)


def _places():
    return [(shard, row) for shard, count in enumerate(COUNTS) for row in range(count)]


def _read(dataset, kind, places=None):
    """What each sample gives when it is read: itself, or the words that say what is broken.

    A sample that is not what was written fails the test.
    """
    found = []
    for place, wanted in zip(_places(), _samples(kind), strict=True):
        if places is None or place in places:
            try:
                assert dataset.read(*place) == wanted
                found.append(wanted)
            except CorruptShard as error:
                found.append(str(error))
    return found


def _is_named(found, name):
    return all(name in words for words in found if isinstance(words, str))


def _broken_files(capsys, url):
    capsys.readouterr()
    code = run_verify(url)
    lines = capsys.readouterr().out.splitlines()
    files = {line.split(": ")[1] for line in lines if line.startswith("broken: ")}
    assert code == (1 if files else 0)
    return files


def _batches(dataset, kind):
    """Place, image and caption, or moments and text, of one epoch as the loader gives them."""
    corpus = Corpus([dataset], None, seed=0, block_shards=2, batch_size=2)
    places = [range(place, place + 2) for place in range(0, sum(COUNTS), 2)]
    for batch in batches(corpus, KINDS[kind][2], places, threads=2):
        content = batch.images if kind == "images" else batch.moments
        text = batch.captions if kind == "images" else batch.text
        yield from zip(batch.places.tolist(), content, text, strict=True)


# --- cuts


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_no_cut_gives_a_wrong_sample(folder, kind, shard, capsys):
    whole = {
        place: content for place, content, _ in _batches(open_dataset(str(folder), "any"), kind)
    }
    name = f"shards/{shard:05d}.tar"
    content = (folder / name).read_bytes()
    last_needed = 0
    for length in range(0, len(content), 512):
        (folder / name).write_bytes(content[:length])
        dataset = open_dataset(str(folder), "any")
        found = _read(dataset, kind)
        assert _is_named(found, name)
        broken = any(isinstance(words, str) for words in found)
        if broken:
            last_needed = length
            with pytest.raises(CorruptShard, match=name):
                for place, image, _ in _batches(dataset, kind):
                    assert np.array_equal(image, whole[place])
        assert _broken_files(capsys, folder) == {name}
    assert last_needed >= len(content) - 10240  # a tar ends in as many zeros


# --- flips


def test_no_flip_gives_a_wrong_sample_and_every_one_is_found(folder, kind, capsys):
    dice = random.Random(kind)
    written = files_of(folder)
    names = [name for name in written if name.endswith((".tar", ".npy")) or name == NAME]
    pinned = manifest_of(folder).fingerprint
    kinds, hints = Counter(), 0
    for _ in range(FLIPS // len(KINDS)):
        name = dice.choice(names)
        (folder / name).write_bytes(flip_bit(written[name], dice.randrange(8 * len(written[name]))))
        try:
            found = _read(open_dataset(str(folder), "any"), kind)
            assert name == NAME or _is_named(found, name)
            kinds[any(isinstance(words, str) for words in found)] += 1
            broken = _broken_files(capsys, folder)
            if name == NAME and not broken:  # the words of a hint, which carry no weight
                assert manifest_of(folder).fingerprint == pinned
                hints += 1
            else:
                assert broken == {name}
        except UserError as error:
            assert name == NAME and NAME in str(error)
            kinds[NAME] += 1
        (folder / name).write_bytes(written[name])
    assert _broken_files(capsys, folder) == set()
    assert hints < FLIPS / 100
    assert min(kinds[True], kinds[False], kinds[NAME]) > FLIPS / 100


# --- files in each other's place


def _swap(folder: Path, first, second):
    contents = (folder / first).read_bytes(), (folder / second).read_bytes()
    for name, content in zip((second, first), contents, strict=True):
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("pattern", ["shards/{:05d}.tar", "index/{:05d}.npy"])
def test_swapped_files_are_noticed(folder, kind, pattern, capsys):
    first, second = pattern.format(0), pattern.format(1)
    _swap(folder, first, second)
    found = _read(open_dataset(str(folder), "any"), kind)
    assert [isinstance(words, str) for words in found] == [True] * 5 + [False]
    assert _broken_files(capsys, folder) == {first, second}


def test_tars_of_one_layout_in_each_others_place_are_noticed(kind, tmp_path, capsys):
    write, samples, _ = KINDS[kind]
    write(str(tmp_path), 4, 4)
    _swap(tmp_path, "shards/00000.tar", "shards/00001.tar")
    dataset = open_dataset(str(tmp_path), "any")
    for place, _ in zip(itertools.product((0, 1), range(4)), samples(8), strict=True):
        with pytest.raises(CorruptShard, match=r"shards/0000\d\.tar"):
            dataset.read(*place)
    assert _broken_files(capsys, tmp_path) == {"shards/00000.tar", "shards/00001.tar"}


@pytest.mark.parametrize("names", [["shards"], ["index"], ["shards", "index"]])
def test_files_of_another_dataset_are_noticed(folder, kind, names, tmp_path, capsys):
    other = tmp_path / "other"
    KINDS[kind][0](str(other), 9, *COUNTS)
    for name in names:
        for shard in range(3):
            file = next((other / name).glob(f"{shard + 1:05d}.[nt]*"))
            (folder / name / f"{shard:05d}{file.suffix}").write_bytes(file.read_bytes())
    found = _read(open_dataset(str(folder), "any"), kind)
    assert all(isinstance(words, str) for words in found)
    assert len(_broken_files(capsys, folder)) == 3 * len(names)


def test_the_empty_caption_of_another_dataset_is_noticed(tmp_path, capsys):
    write_latents(str(tmp_path), 1)
    (tmp_path / EMPTY_TEXT).write_bytes(bytes(200))
    assert _broken_files(capsys, tmp_path) == {EMPTY_TEXT}


# --- changes while it is read


def _other_tar(kind, first):
    return write_tar(KINDS[kind][1](COUNTS[0], first))


@pytest.mark.parametrize("url", ["memory", "s3"], indirect=True)
@pytest.mark.parametrize("first", [1, 100, None])
def test_an_object_replaced_while_it_is_read_is_noticed(url, kind, first):
    """By others of the same layout or another, or removed."""
    KINDS[kind][0](url, *COUNTS)
    prefix, dataset = open_prefix(url, "out"), open_dataset(url, "any")
    wanted = _samples(kind)
    assert dataset.read(0, 0) == wanted[0] and dataset.read(1, 0) == wanted[2]
    if first is None:
        prefix.remove("shards/00000.tar")
    else:
        prefix.write("shards/00000.tar", _other_tar(kind, first))
    for row in range(2):
        with pytest.raises(CorruptShard, match=r"shards/00000\.tar"):
            dataset.read(0, row)
    assert _read(dataset, kind, _places()[2:]) == wanted[2:]


@pytest.mark.parametrize("change", ["renamed over", "overwritten", "removed"])
def test_a_file_changed_while_it_is_read_is_right_or_noticed(folder, kind, change):
    dataset, wanted = open_dataset(str(folder), "any"), _samples(kind)
    assert dataset.read(0, 0) == wanted[0]
    tar = folder / "shards" / "00000.tar"
    if change == "renamed over":
        (folder / "new").write_bytes(_other_tar(kind, 100))
        (folder / "new").rename(tar)
    elif change == "overwritten":
        with tar.open("r+b") as file:
            file.write(_other_tar(kind, 100))
    else:
        tar.unlink()
    found = _read(dataset, kind)
    assert found[2:] == wanted[2:]
    if change == "overwritten":
        assert all(isinstance(words, str) for words in found[:2])
    anew = _read(open_dataset(str(folder), "any"), kind)
    assert all(isinstance(words, str) and "00000.tar" in words for words in anew[:2])


def test_an_index_replaced_while_it_is_read_is_right_or_noticed(folder, kind):
    dataset, wanted = open_dataset(str(folder), "any"), _samples(kind)
    assert dataset.read(0, 0) == wanted[0]
    _swap(folder, "index/00000.npy", "index/00002.npy")
    found = _read(dataset, kind)
    assert _is_named(found, "index/") and isinstance(found[-1], str)


# --- uneven shards


@pytest.mark.parametrize("counts", [(1, 2, 3, 4, 5, 6, 7), (12, 1, 1, 1, 1, 1, 1)])
def test_uneven_shards_give_every_rank_as_many_steps(tmp_path, counts):
    write_images(str(tmp_path), *counts)
    total, ranks, micro = sum(counts), 3, 2
    corpus = Corpus([open_dataset(str(tmp_path), "images")], None, 5, 3, ranks * micro)
    steps = total  # a multiple of the epochs whatever the batch
    seen = []
    for rank in range(ranks):
        loader = Loader(corpus, ImageCollator(0), ranks * micro, micro, rank, ranks, threads=2)
        keys = [batch.keys for batch in itertools.islice(loader, steps)]
        loader.close()
        assert [len(one) for one in keys] == [micro] * steps
        seen += itertools.chain.from_iterable(keys)
    assert Counter(seen) == {f"s{i}": ranks * micro for i in range(total)}
