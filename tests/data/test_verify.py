import json

import pytest

from conf.errors import UserError
from conf.groups import DatasetConfig
from conf.schema import VerifyCommand
from data.manifest import EMPTY_TEXT
from data.storage import open_prefix
from data.stream import open_dataset
from data.verify import verify
from tests.helpers.datasets import flip_bit, write_images, write_latents


def _verify(url):
    return verify(VerifyCommand(data=DatasetConfig(url=str(url))))


def _faults(capsys):
    lines = capsys.readouterr().out.splitlines()
    return [line.removeprefix("broken: ") for line in lines if line.startswith("broken: ")]


@pytest.fixture
def raw(tmp_path):
    write_images(str(tmp_path / "raw"), 3, 2)
    return tmp_path / "raw"


@pytest.mark.parametrize("write", [write_images, write_latents])
def test_a_whole_dataset_passes_on_every_storage(url, write, capsys):
    manifest = write(url, 3, 2)
    assert _verify(url) == 0
    last = f"verify: 5 samples in 2 shards, 0 broken; fingerprint {manifest.fingerprint}\n"
    assert capsys.readouterr().out == last


@pytest.mark.parametrize("extension", ["png", "txt", "json"])
def test_a_flip_is_named_with_its_shard_sample_and_bytes(raw, capsys, extension):
    entry = open_dataset(str(raw), "images").index(1)[0]
    column = ("png", "txt", "json").index(extension)
    start, length = int(entry["offset"][column]), int(entry["length"][column])
    shard = raw / "shards" / "00001.tar"
    shard.write_bytes(flip_bit(shard.read_bytes(), 8 * (start + length - 1) + 3))
    assert _verify(raw) == 1
    assert _faults(capsys) == [
        f"shards/00001.tar: s3.{extension}: "
        f"bytes {start} to {start + length} are not those of the index"
    ]


def test_every_flip_is_found(raw, capsys):
    shard = raw / "shards" / "00000.tar"
    whole = shard.read_bytes()
    for place in range(0, len(whole), 97):
        shard.write_bytes(flip_bit(whole, 8 * place + place % 8))
        assert _verify(raw) == 1
        assert all(fault.startswith("shards/00000.tar: ") for fault in _faults(capsys))


def test_a_flip_between_the_samples_is_found(raw, capsys):
    shard = raw / "shards" / "00000.tar"
    shard.write_bytes(flip_bit(shard.read_bytes(), 8 * 200))
    assert _verify(raw) == 1
    assert _faults(capsys) == ["shards/00000.tar: bytes between the samples differ"]


def test_every_cut_is_found(raw, capsys):
    shard = raw / "shards" / "00000.tar"
    whole = shard.read_bytes()
    for length in range(0, len(whole), 512):
        shard.write_bytes(whole[:length])
        assert _verify(raw) == 1
        assert f"has {length:,} bytes, the manifest says {len(whole):,}" in _faults(capsys)[0]


def test_a_damaged_index_is_named(raw, capsys):
    index = raw / "index" / "00001.npy"
    index.write_bytes(flip_bit(index.read_bytes(), 8 * 150))
    assert _verify(raw) == 1
    assert _faults(capsys) == ["index/00001.npy: is not the index that the manifest pins"]


@pytest.mark.parametrize("name", ["shards/00001.tar", "index/00001.npy"])
def test_a_missing_file_is_named_on_every_storage(url, capsys, name):
    write_images(url, 3, 2)
    open_prefix(url, "out").remove(name)
    assert _verify(url) == 1
    (fault,) = _faults(capsys)
    assert fault.startswith("00001: a file is missing") and name in fault


def test_everything_broken_is_named(raw, capsys):
    for name in ("00000", "00001"):
        shard = raw / "shards" / f"{name}.tar"
        content = bytearray(shard.read_bytes())
        content[512:516] = b"!!!!"
        shard.write_bytes(content)
    assert _verify(raw) == 1
    assert [fault[:16] for fault in _faults(capsys)] == ["shards/00000.tar", "shards/00001.tar"]


def test_the_empty_caption_is_checked(tmp_path, capsys):
    write_latents(str(tmp_path), 2)
    empty = tmp_path / EMPTY_TEXT
    empty.write_bytes(flip_bit(empty.read_bytes(), 8 * 130))
    assert _verify(tmp_path) == 1
    assert _faults(capsys) == [f"{EMPTY_TEXT}: is not what the manifest pins"]
    empty.unlink()
    assert _verify(tmp_path) == 1
    assert _faults(capsys) == [f"{EMPTY_TEXT}: is missing"]


def test_nothing_is_no_dataset(tmp_path):
    with pytest.raises(UserError, match="holds no dataset"):
        _verify(tmp_path)


def test_a_changed_manifest_is_refused(raw):
    manifest = raw / "manifest.json"
    content = json.loads(manifest.read_text())
    content["shards"][0]["buckets"] = [4]
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="was changed after it was written"):
        _verify(raw)
