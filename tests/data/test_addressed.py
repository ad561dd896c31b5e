import numpy as np
import pytest

from conf.compose import compose_config
from conf.errors import RunError
from data.addressed import (
    address,
    create_shard,
    require_whole,
    sweep,
    take_shard,
    whole_shards,
)
from data.arrays import dump_array, load_array
from data.manifest import Manifest
from data.sample import META, MOMENTS, TEXT, RawSample
from data.shard import commit_dataset, finished_shard
from data.storage import open_prefix
from data.stream import Dataset
from data.verify.command import verify
from tests.helpers.datasets import files_of

MEMBERS = (MOMENTS, TEXT, "text1.npy", META)


def _samples(texts):
    chance = np.random.default_rng(0)
    for i, own in enumerate(texts):
        moments = dump_array(chance.standard_normal((8, 2, 2)).astype(np.float16))
        named = zip((TEXT, "text1.npy"), own, strict=False)
        members = {name: dump_array(np.full((30, 40), value, np.float16)) for name, value in named}
        yield RawSample(f"s{i}", {MOMENTS: moments, META: b"{}", **members})


def _dataset(out, texts, deduplicate):
    names = (TEXT, "text1.npy") if deduplicate else ()
    entry = create_shard(out, "00000-a", _samples(texts), MEMBERS, 1, names, note="kept")
    settings = {"deduplicate": deduplicate}
    manifest = Manifest("images", ((16, 16),), MEMBERS, (entry.shard,), "of a test", settings)
    commit_dataset(out, manifest)
    return manifest


@pytest.fixture(params=["local", "memory"])
def out(request, tmp_path):
    url = str(tmp_path) if request.param == "local" else f"memory://{tmp_path}"
    return open_prefix(url, "out")


TEXTS = [(1,), (2, 1), (1, 1), (3, 2)]


def test_equal_members_are_stored_once_and_read_by_all(out):
    whole = _dataset(out / "whole", TEXTS, False)
    shared = _dataset(out / "shared", TEXTS, True)
    assert whole.shards[0].bytes - shared.shards[0].bytes >= 10240  # tars grow by so much
    datasets = [Dataset(out / name, one) for name, one in (("whole", whole), ("shared", shared))]
    for row, own in enumerate(TEXTS):
        one, two = (dataset.read(0, row) for dataset in datasets)
        assert one == two
        assert [load_array(two.members[name])[0, 0] for name in MEMBERS[1 : 1 + len(own)]] == [*own]
    rows = [(0, row) for row in range(len(TEXTS))]
    for numbers in ([0, 1], [0, [1, 2, 2, 1]]):
        for one, two in zip(*(data.columns(rows, numbers) for data in datasets), strict=True):
            assert [one.member(i).copy() for i in range(4)] == [
                two.member(i).copy() for i in range(4)
            ]


@pytest.mark.parametrize("deduplicate", [False, True])
def test_a_shard_whose_samples_share_members_is_found_whole(tmp_path, deduplicate, capsys):
    out = open_prefix(str(tmp_path / "set"), "out")
    _dataset(out, TEXTS, deduplicate)
    assert verify(compose_config("verify", [f"data.url={tmp_path / 'set'}"])) == 0
    capsys.readouterr()
    verify(compose_config("verify", [f"data.url={tmp_path / 'set'}", "samples=3"]))
    said = capsys.readouterr().out
    assert said.count("broken:") == said.count("has no image") == 3, said  # of a made-up kind


def test_how_many_members_a_sample_has(out):
    data = Dataset(out, _dataset(out, TEXTS, False))
    assert data.present([(0, row) for row in range(4)], [1, 2]).tolist() == [1, 2, 2, 2]


def test_whoever_is_first_has_made_the_shard(out):
    first = create_shard(out, "00000-a", _samples([(1,)]), MEMBERS, 1, note="first")
    before = {name: out.read(name) for name in (first.shard.tar, first.shard.index)}
    for texts, note in (([(2,)], "other"), ([(1,)], "same")):
        assert create_shard(out, "00000-a", _samples(texts), MEMBERS, 1, note=note) == first
    assert {name: out.read(name) for name in before} == before
    assert out.names("shards") == [first.shard.tar.removeprefix("shards/")]
    assert finished_shard(out, "00000-a") == first


def test_a_shard_of_no_samples_is_an_entry_alone(out):
    entry = create_shard(out, "00000-a", [], MEMBERS, 1)
    assert entry.shard.samples == 0
    assert not out.names("shards") and out.names("index") == ["00000-a.json"]


def test_an_address_is_of_all_that_goes_in():
    name = address(3, {"a": 1, "b": [1, 2]})
    assert name == address(3, {"b": [1, 2], "a": 1})
    assert name.startswith("00003-")
    others = [address(4, {"a": 1, "b": [1, 2]}), address(3, {"a": 1, "b": [1, 3]})]
    assert name not in others


def test_a_shard_is_taken_once(out):
    assert take_shard(out, "00000-a")
    assert not take_shard(out, "00000-a")
    assert take_shard(out, "00001-b")


def test_what_does_not_count_is_swept(tmp_path):
    out = open_prefix(str(tmp_path), "out")
    manifest = _dataset(out, TEXTS, False)
    before = files_of(tmp_path)
    take_shard(out, "00000-a")
    out.write("shards/00000-a-ffff.tar", b"of a loser")
    out.write("index/00000-a-ffff.npy", b"of a loser")
    sweep(out, manifest)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("folder", ["shards", "index"])
def test_a_finished_shard_whose_file_is_gone_is_made_again(out, folder, capsys):
    first = create_shard(out, "00000-a", _samples([(1,)]), MEMBERS, 1)
    create_shard(out, "00001-b", _samples([(2,)]), MEMBERS, 1)
    create_shard(out, "00002-c", [], MEMBERS, 1)
    names = ["00000-a", "00001-b", "00002-c", "00003-d"]
    assert [*whole_shards(out, names)] == names[:3]
    gone = first.shard.tar if folder == "shards" else first.shard.index
    out.remove(gone)
    assert [*whole_shards(out, names)] == names[1:3]
    assert f"{gone} is gone" in capsys.readouterr().out
    assert create_shard(out, "00000-a", _samples([(1,)]), MEMBERS, 1) == first
    assert [*whole_shards(out, names)] == names[:3]


def test_a_finished_dataset_without_all_of_its_files_is_not_called_finished(out):
    manifest = _dataset(out, TEXTS, False)
    require_whole(out, manifest)
    out.remove(manifest.shards[0].tar)
    with pytest.raises(RunError, match=f"lacks {manifest.shards[0].tar} and 0 more files"):
        require_whole(out, manifest)
