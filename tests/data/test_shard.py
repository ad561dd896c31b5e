import json

import numpy as np
import pytest

from conf.errors import RunError, UserError
from conf.groups import DatasetConfig
from conf.schema import VerifyCommand
from data import ingest
from data import shard as module
from data.image import decode_image, encode_png
from data.manifest import NAME, parse_manifest, sha256
from data.progress import SUMMARY
from data.shard import finished_shard, shard_names
from data.storage import open_prefix
from data.stream import open_dataset
from data.tar import index_tar
from data.verify import verify
from tests.data.conftest import EMOJI
from tests.helpers.datasets import files_of, run_shard, tiny_image, tiny_images


def _same_for_every_run(folder):
    """The files of a dataset but for the record of how long it took."""
    return {name: content for name, content in files_of(folder).items() if name != SUMMARY}


def _refused(out, *overrides):
    with pytest.raises(UserError) as caught:
        run_shard(out, *overrides)
    assert "\n" not in str(caught.value)
    return caught.value


def _folder(images):
    return ("source=folder", f"source.path={images}")


# --- what comes out


def test_a_dataset_holds_its_source(images, tmp_path):
    manifest = run_shard(tmp_path / "out", *_folder(images))
    dataset = open_dataset(str(tmp_path / "out"), "images")
    assert [shard.samples for shard in manifest.shards] == [4, 4, 2]
    assert manifest == dataset.manifest
    for number in range(10):
        sample = dataset.read(number // 4, number % 4)
        assert sample.key == f"{number:03d}"
        assert np.array_equal(decode_image(sample.members["png"]), tiny_image(number, 16))
        assert sample.members["txt"] == f"caption {number}".encode()
        assert json.loads(sample.members["json"]) == {
            "caption": f"caption {number}",
            "crop": [0, 0],
            "group": f"{number:03d}",
            "original_size": [16, 16],
        }


def test_images_become_squares_of_the_size_asked_for(images, tmp_path):
    run_shard(tmp_path / "out", *_folder(images), "size=8")
    sample = open_dataset(str(tmp_path / "out"), "images").read(0, 0)
    assert decode_image(sample.members["png"]).shape == (8, 8, 3)
    assert json.loads(sample.members["json"])["original_size"] == [16, 16]


def test_source_and_dataset_may_lie_anywhere(url, images):
    for name, content in files_of(images).items():
        open_prefix(f"{url}/in", "out").write(name, content)
    manifest = run_shard(f"{url}/out", *_folder(f"{url}/in"))
    assert manifest.samples == 10
    assert verify(VerifyCommand(data=DatasetConfig(url=f"{url}/out"))) == 0
    assert run_shard(f"{url}/out", *_folder(f"{url}/in")) == manifest


def test_the_manifest_pins_every_file(emoji):
    manifest = parse_manifest((emoji / NAME).read_bytes(), "")
    assert manifest.kind == "images" and manifest.samples > 20
    for shard in manifest.shards:
        content, index = (emoji / shard.tar).read_bytes(), (emoji / shard.index).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(content), sha256(content))
        assert shard.index_sha256 == sha256(index)
        assert shard.samples == len(index_tar(content, manifest.members, ""))


def test_a_summary_is_kept(emoji):
    (part,) = json.loads((emoji / SUMMARY).read_bytes())
    assert part["command"] == "shard"
    assert part["samples"] == parse_manifest((emoji / NAME).read_bytes(), "").samples


# --- the same bytes


@pytest.mark.parametrize("processes", [1, 2])
def test_bytes_are_the_same_for_every_run_and_number_of_processes(emoji, tmp_path, processes):
    run_shard(tmp_path / "again", *EMOJI, f"processes={processes}")
    assert _same_for_every_run(tmp_path / "again") == _same_for_every_run(emoji)


def test_the_fingerprint_is_of_the_content_not_of_the_place(images, tmp_path):
    moved = tmp_path / "moved"
    tiny_images(moved, 10, 16)
    first = run_shard(tmp_path / "first", *_folder(images))
    second = run_shard(tmp_path / "second", *_folder(moved))
    assert first.fingerprint == second.fingerprint
    assert first.identity != second.identity


# --- taking up where it was


def test_an_interrupted_command_goes_on(images, tmp_path):
    out = tmp_path / "out"
    run_shard(out, *_folder(images))
    whole = _same_for_every_run(out)
    (out / NAME).unlink()
    (out / "index" / "00001.json").unlink()
    (out / "shards" / "00001.tar").write_bytes(b"half")
    times = {file: file.stat().st_mtime_ns for file in out.rglob("0000[02].*")}
    assert len(times) == 6
    run_shard(out, *_folder(images))
    assert _same_for_every_run(out) == whole
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert [part["samples"] for part in json.loads((out / SUMMARY).read_bytes())] == [10, 4]


def test_a_command_killed_at_any_write_goes_on_to_the_same(images, tmp_path, monkeypatch):
    run_shard(tmp_path / "whole", *_folder(images))
    write = module.Prefix.write
    for fatal in range(9):
        out, writes = tmp_path / f"killed at {fatal}", []

        def killed(self, name, content, fatal=fatal, writes=writes):
            if not name.startswith(".probe"):
                writes.append(name)
            if len(writes) > fatal:
                raise KeyboardInterrupt
            write(self, name, content)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module.Prefix, "write", killed)
            run_shard(out, *_folder(images))
        assert not (out / NAME).exists()
        run_shard(out, *_folder(images))
        assert _same_for_every_run(out) == _same_for_every_run(tmp_path / "whole")


def test_a_finished_dataset_is_left_alone(images, tmp_path, capsys):
    out = tmp_path / "out"
    manifest = run_shard(out, *_folder(images))
    before = files_of(out)
    assert run_shard(out, *_folder(images)) == manifest
    assert files_of(out) == before
    assert "is finished (10 images), nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "name"),
    [("size=8", "size"), ("shard_samples=5", "shard_samples"), ("source=openmoji", "source.")],
)
def test_other_settings_in_the_same_place_are_refused(images, tmp_path, change, name, finished):
    out = tmp_path / "out"
    run_shard(out, *_folder(images))
    if not finished:
        (out / NAME).unlink()
    before = files_of(out)
    overrides = [change] if change.startswith("source") else [*_folder(images), change]
    error = _refused(out, *overrides)
    assert error.setting == f"out={out}"
    assert f"there {name}" in error.wrong
    assert files_of(out) == before


def test_another_split_in_the_same_place_is_refused(emoji):
    before = files_of(emoji)
    error = _refused(emoji, *EMOJI[1:], "source.split=train")
    assert "there source.split is held_out, asked for was train" in error.wrong
    assert files_of(emoji) == before


def test_a_manifest_that_another_process_wrote_first_is_kept(images, tmp_path, monkeypatch):
    manifest = run_shard(tmp_path / "out", *_folder(images))
    out = open_prefix(str(tmp_path / "out"), "out")
    module.commit_dataset(out, manifest)
    other = module.Manifest(**{**_fields(manifest), "shards": manifest.shards[:1]})
    with pytest.raises(UserError, match="was finished by another process with other content"):
        module.commit_dataset(out, other)
    assert open_dataset(out.url, "images").manifest == manifest


def _fields(manifest):
    return {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}


def test_a_shard_is_finished_when_its_entry_is_there(images, tmp_path):
    manifest = run_shard(tmp_path / "out", *_folder(images))
    out = open_prefix(str(tmp_path / "out"), "out")
    assert finished_shard(out, "00000").shard == manifest.shards[0]
    assert finished_shard(out, "99999") is None


@pytest.mark.parametrize(
    ("samples", "names"), [(0, []), (1, ["00000"]), (4, ["00000"]), (5, ["00000", "00001"])]
)
def test_shards_are_as_many_as_the_samples_need(samples, names):
    assert shard_names(samples, 4) == names


# --- a source that does not stay as it is


def test_a_source_that_changes_meanwhile_is_found_out(images, tmp_path, monkeypatch):
    make = ingest.make_shard

    def changing(config, task):
        (images / "004.txt").write_text("another caption")
        return make(config, task)

    monkeypatch.setattr(ingest, "make_shard", changing)
    with pytest.raises(RunError, match="the source has changed since the command began"):
        run_shard(tmp_path / "out", *_folder(images))
    assert not (tmp_path / "out" / NAME).exists()


def test_rows_of_a_table_that_changes_meanwhile_are_not_taken(images, tmp_path, monkeypatch):
    table = images / "t.csv"
    table.write_text("image,caption\n" + "".join(f"{i:03d}.png,c\n" for i in range(10)))
    make = ingest.make_shard

    def changing(config, task):
        table.write_text(table.read_text().replace(",c\n", ",d\n") + "\n")
        return make(config, task)

    monkeypatch.setattr(ingest, "make_shard", changing)
    with pytest.raises(RunError, match=r"t.csv has changed since the command began"):
        run_shard(tmp_path / "out", "source=table", f"source.path={table}")
    assert not (tmp_path / "out" / "index").exists()


# --- what only the user can mend


def test_an_empty_source_leaves_out_untouched(tmp_path):
    (tmp_path / "images").mkdir()
    error = _refused(tmp_path / "out", *_folder(tmp_path / "images"))
    assert error.setting == f"source.path={tmp_path / 'images'}"
    assert not (tmp_path / "out").exists()


def test_a_broken_image_is_named(images, tmp_path):
    (images / "007.png").write_bytes(encode_png(tiny_image(7, 16))[:60])
    error = _refused(tmp_path / "out", *_folder(images))
    assert error.wrong.startswith("007.png: ")
    assert not (tmp_path / "out" / NAME).exists()


@pytest.mark.parametrize("below", ["", "/below"])
def test_an_out_that_cannot_be_written_is_refused_before_the_work(
    images, tmp_path, monkeypatch, below
):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr(ingest, "_make_shards", lambda *_: pytest.fail("it started to work"))
    error = _refused(f"{tmp_path}/file{below}", *_folder(images))
    assert error.setting == f"out={tmp_path}/file{below}"
    assert (tmp_path / "file").read_text() == "kept"


def test_too_little_room_is_refused_before_the_work(images, tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "_room", lambda *_: 10**18)
    error = _refused(tmp_path / "out", *_folder(images))
    assert error.setting == f"out={tmp_path / 'out'}"
    assert "MB are needed" in error.wrong
    assert files_of(tmp_path / "out") == {}


@pytest.mark.parametrize("out", ["pipe:cat", "ftp://host/a", "a::b"])
def test_an_out_of_a_scheme_that_is_not_allowed_is_refused(images, out):
    error = _refused(f"'{out}'", *_folder(images))
    assert error.setting == f"out={out!r}"


@pytest.mark.parametrize("content", [b"", b"{}", b'{"shard": {}, "extra": {}}', b"[]", b"\xff"])
def test_an_entry_that_was_damaged_is_named_and_can_be_made_again(images, tmp_path, content):
    out = tmp_path / "out"
    whole = run_shard(out, *_folder(images))
    (out / NAME).unlink()
    (out / "index/00001.json").write_bytes(content)
    with pytest.raises(
        UserError, match=r"index/00001\.json: is damaged .*remove it, and run again"
    ):
        run_shard(out, *_folder(images))
    (out / "index/00001.json").unlink()
    assert run_shard(out, *_folder(images)) == whole
