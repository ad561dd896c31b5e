import json
import tarfile

import pytest
from PIL import Image

from conf.errors import UserError
from conf.groups import DatasetConfig, FilterConfig
from conf.schema import VerifyCommand
from data.image import encode_png
from data.manifest import NAME
from data.progress import SUMMARY
from data.sift import SKIPPED, left_out_by
from data.stream import open_dataset
from data.verify import verify
from tests.helpers.datasets import files_of, run_shard, tiny_image


def _same_for_every_run(folder):
    return {name: content for name, content in files_of(folder).items() if name != SUMMARY}


def _keys(folder):
    dataset = open_dataset(str(folder), "images")
    sizes = [shard.samples for shard in dataset.manifest.shards]
    return [dataset.read(i, j).key for i, size in enumerate(sizes) for j in range(size)]


def _refused(out, *overrides):
    with pytest.raises(UserError) as caught:
        run_shard(out, *overrides)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def table(tmp_path):
    """Twenty rows: image 3 is cut, 8 to 11 (a whole shard) are missing, 17 has no caption."""
    folder = tmp_path / "table"
    folder.mkdir()
    rows = []
    for i in range(20):
        content = encode_png(tiny_image(i, 16))
        if i not in (8, 9, 10, 11):
            (folder / f"{i}.png").write_bytes(content[:60] if i == 3 else content)
        rows.append({"image": f"{i}.png", "caption": "" if i == 17 else f"c {i}", "score": i})
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("source=table", f"source.path={folder}/t.jsonl")


BAD = {f"{i:09d}" for i in (3, 8, 9, 10, 11, 17)}


# --- the budget


def test_the_first_bad_sample_stops_the_command(table, tmp_path):
    error = _refused(tmp_path / "out", *table)
    assert error.wrong.startswith("row 3 (3.png): ") and "max_bad_share" in error.remedy
    assert not (tmp_path / "out" / NAME).exists()


def test_bad_samples_are_skipped_counted_and_listed(table, tmp_path, capsys):
    out = tmp_path / "out"
    manifest = run_shard(out, *table, "max_bad_share=0.3")
    assert set(_keys(out)) == {f"{i:09d}" for i in range(20)} - BAD
    assert [(s.name, s.samples) for s in manifest.shards] == [
        ("00000", 3),
        ("00001", 4),
        ("00003", 4),
        ("00004", 3),
    ]
    assert not (out / "shards" / "00002.tar").exists()
    assert verify(VerifyCommand(data=DatasetConfig(url=str(out)))) == 0
    skipped = json.loads((out / SKIPPED).read_bytes())
    assert [sample["key"] for sample in skipped["bad"]] == sorted(BAD)
    assert skipped["bad"][1] == {
        "key": "000000008",
        "kind": "no image",
        "what": "row 8 (8.png): there is no such file",
    }
    said = "6 bad samples skipped (bad image 1, no caption 1, no image 4), 0 left out by filters"
    assert said in capsys.readouterr().out
    (part,) = json.loads((out / SUMMARY).read_bytes())
    assert part["samples"] == 14
    assert part["bad"] == {"bad image": 1, "no caption": 1, "no image": 4}


def test_more_than_the_share_stops_the_command_and_a_larger_one_goes_on(table, tmp_path):
    out = tmp_path / "out"
    error = _refused(out, *table, "max_bad_share=0.29")
    assert error.setting == "max_bad_share=0.29"
    assert error.wrong.startswith("6 of 20 samples are bad (") and ".png" in error.wrong
    assert not (out / NAME).exists()
    run_shard(out, *table, "max_bad_share=0.3")
    run_shard(tmp_path / "at once", *table, "max_bad_share=1")
    assert _same_for_every_run(out) == _same_for_every_run(tmp_path / "at once")


def test_a_finished_or_begun_dataset_is_held_against_the_share(table, tmp_path):
    out = tmp_path / "out"
    run_shard(out, *table, "max_bad_share=0.3")
    assert _refused(out, *table, "max_bad_share=0.1").setting == "max_bad_share=0.1"
    run_shard(out, *table, "max_bad_share=0.5")
    (out / NAME).unlink()
    assert "6 of 20 samples are bad" in _refused(out, *table).wrong


def test_bytes_are_the_same_for_every_number_of_processes(tmp_path):
    (tmp_path / "in").mkdir()
    for tar in range(3):
        with tarfile.open(tmp_path / "in" / f"{tar}.tar", "w") as archive:
            for i in range(5):
                members = {
                    "txt": b"c",
                    "png": encode_png(tiny_image(i, 16)),
                    "json": json.dumps({"score": 5 * tar + i}).encode(),
                }
                for extension, content in members.items():
                    (tmp_path / "member").write_bytes(content)
                    if (tar, i, extension) != (1, 3, "png"):
                        archive.add(tmp_path / "member", f"{i}.{extension}")
    source = ("source=webdataset", f"source.path={tmp_path / 'in'}")
    settings = (*source, "max_bad_share=0.1", "filter.fields=['score>=1']")
    for processes in (1, 2):
        run_shard(tmp_path / str(processes), *settings, f"processes={processes}")
    assert _same_for_every_run(tmp_path / "1") == _same_for_every_run(tmp_path / "2")
    assert len(_keys(tmp_path / "1")) == 13
    assert b"1.tar: 3: no image" in (tmp_path / "1" / SKIPPED).read_bytes()


def test_a_source_of_bad_samples_alone_is_refused(images, tmp_path):
    for file in images.glob("*.png"):
        file.write_bytes(b"")
    folder = ("source=folder", f"source.path={images}")
    error = _refused(tmp_path / "out", *folder, "max_bad_share=1")
    assert error.setting == "max_bad_share=1" and "(bad image 10)" in error.wrong


def test_nothing_is_left_behind_where_nothing_is_skipped(images, tmp_path):
    """A share and filters that are not needed leave the files of old as they were."""
    folder = ("source=folder", f"source.path={images}")
    run_shard(tmp_path / "a", *folder)
    run_shard(tmp_path / "b", *folder, "max_bad_share=0.5")
    assert _same_for_every_run(tmp_path / "a") == _same_for_every_run(tmp_path / "b")
    assert not (tmp_path / "a" / SKIPPED).exists()
    settings = json.loads((tmp_path / "a" / NAME).read_bytes())["settings"]
    assert sorted(settings) == [
        "crop",
        "format",
        "kind",
        "quality",
        "shard_samples",
        "size",
        "source",
        "version",
    ]
    assert json.loads((tmp_path / "a" / "index" / "00000.json").read_bytes())["extra"] == {}
    assert sorted(json.loads((tmp_path / "a" / SUMMARY).read_bytes())[0]) == [
        "command",
        "peak_memory",
        "samples",
        "seconds",
    ]


# --- filters


@pytest.mark.parametrize(
    ("settings", "meta", "reason"),
    [
        ({}, {}, None),
        ({"min_side": 20}, {}, None),
        ({"min_side": 21}, {}, "min_side"),
        ({"max_aspect": 2.5}, {}, None),
        ({"max_aspect": 2.49}, {}, "max_aspect"),
        ({"fields": ["a>=5"]}, {"a": 5}, None),
        ({"fields": ["a>=5"]}, {"a": 4.99}, "a>=5"),
        ({"fields": ["a<=5"]}, {"a": 5}, None),
        ({"fields": ["a<=5"]}, {"a": 5.01}, "a<=5"),
        ({"fields": ["a>=-1e1"]}, {"a": "-10"}, None),
        ({"fields": ["b<=0", " a >= 5 "]}, {"a": 4, "b": 0}, " a >= 5 "),
        ({"fields": ["a>=5"]}, {}, "no number a"),
        ({"fields": ["a>=0"]}, {"a": True}, "no number a"),
        ({"fields": ["a>=0"]}, {"a": None}, "no number a"),
        ({"fields": ["a>=0"]}, {"a": "many"}, "no number a"),
        ({"fields": ["a>=0"]}, {"a": float("nan")}, "no number a"),
        ({"fields": ["a>=0"]}, {"a": 10**400}, "no number a"),
    ],
)
@pytest.mark.parametrize("size", [[20, 50], [50, 20]])
def test_a_filter_leaves_out_what_it_names(settings, meta, reason, size):
    assert left_out_by({"original_size": size, **meta}, FilterConfig(**settings)) == reason


def test_filters_hold_for_every_source_and_are_counted(images, tmp_path, capsys):
    for name, size in (("001", (15, 40)), ("002", (16, 33)), ("003", (32, 16))):
        Image.new("RGB", size).save(images / f"{name}.png")
    settings = ("source=folder", f"source.path={images}", "filter.min_side=16")
    out = tmp_path / "out"
    run_shard(out, *settings, "filter.max_aspect=2")
    assert _keys(out) == [f"{i:03d}" for i in (0, 3, 4, 5, 6, 7, 8, 9)]
    said = "0 bad samples skipped, 2 left out by filters (max_aspect 1, min_side 1)"
    assert said in capsys.readouterr().out
    assert json.loads((out / SKIPPED).read_bytes()) == {
        "filtered": {"max_aspect": 1, "min_side": 1}
    }
    (part,) = json.loads((out / SUMMARY).read_bytes())
    assert part["filtered"] == {"max_aspect": 1, "min_side": 1}
    assert "there filter" in _refused(out, *settings, "filter.max_aspect=3").wrong


def test_emoji_are_filtered_too(tmp_path):
    emoji = ("source.split=held_out", "source.held_out_share=0.01", "filter.min_side=17")
    error = _refused(tmp_path / "out", *emoji)
    assert error.setting == "filter" and "(min_side " in error.wrong
