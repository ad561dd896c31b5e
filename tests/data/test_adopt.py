import io
import json
import tarfile
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from conf.errors import UserError
from data import adopt
from data.claim import SETTINGS
from data.image import encode_jpeg, encode_png
from data.manifest import NAME, parse_manifest, sha256
from data.progress import SUMMARY
from data.sift import SKIPPED
from data.storage import open_prefix
from tests.helpers.datasets import files_of, run_shard, tiny_image
from tests.helpers.tars import PNG, indexed_member, make_tar, tar_header, tar_sample, write_tars


def _adopt(source, out, *overrides):
    place = ("source=webdataset", f"source.path={source}", "source.in_place=true")
    return run_shard(out, *place, *overrides)


def _samples(source, out):
    """Every sample that is indexed: key, bucket, and bytes by extension, each of them checked."""
    there = open_prefix(str(out), "out")
    manifest = parse_manifest(there.read(NAME), "")
    for shard in manifest.shards:
        content, index = open_prefix(str(source), "out").read(shard.tar), there.read(shard.index)
        assert (shard.bytes, shard.sha256) == (len(content), sha256(content))
        assert shard.index_sha256 == sha256(index)
        rows = np.load(io.BytesIO(index), allow_pickle=False)
        counts = np.bincount(rows["bucket"], minlength=len(shard.buckets))
        assert tuple(counts) == shard.buckets
        for row in rows:
            members = {
                extension: indexed_member(content, row, column)
                for column, extension in enumerate(manifest.members)
            }
            found = {name: member for name, member in members.items() if member is not None}
            yield bytes(row["key"]).decode(), int(row["bucket"]), found


def _refused(source, out, *overrides):
    with pytest.raises(UserError) as caught:
        _adopt(source, out, *overrides)
    assert "\n" not in str(caught.value)
    return caught.value


# --- what comes out


@pytest.mark.parametrize("same", [True, False])
def test_tars_are_indexed_where_they_are(url, same):
    meta = {"score": 3}
    wide = encode_jpeg(np.zeros((16, 64, 3), dtype=np.uint8), 90)
    write_tars(
        url,
        b=make_tar(*tar_sample(1), *tar_sample(2, meta=meta)),
        **{"below/a": make_tar(("x/1.JPG", wide), ("x/1.TXT", "wide"))},
    )
    out = url if same else f"{url} index"
    manifest = _adopt(url, out, "size=32", "buckets.max_aspect=2", "buckets.step=8")
    assert manifest.tars == open_prefix(url, "out").absolute
    assert manifest.members == adopt.MEMBERS
    assert [(shard.name, shard.tar) for shard in manifest.shards] == [
        ("00000", "b.tar"),
        ("00001", "below/a.tar"),
    ]
    assert list(_samples(url, out)) == [
        ("b~~000000001", 0, {"png": PNG[1], "txt": b"caption 1\n"}),
        (
            "b~~000000002",
            0,
            {"png": PNG[2], "txt": b"caption 2\n", "json": json.dumps(meta).encode()},
        ),
        ("below~2f~a~~x~2f~1", 1, {"jpg": wide, "txt": b"wide"}),
    ]
    assert manifest.settings["caption_field"] is None
    written = set(open_prefix(out, "out").files()) - {"b.tar", "below/a.tar"}
    assert {name.partition("/")[0] for name in written} == {NAME, SETTINGS, SUMMARY, "index"}
    assert _adopt(url, out, "size=32", "buckets.max_aspect=2", "buckets.step=8") == manifest


def test_a_slash_at_the_end_is_no_other_place(url):
    write_tars(url, a=make_tar(*tar_sample(0)))
    assert _adopt(url, f"{url}/").samples == 1


def test_the_bucket_is_that_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32)).save(buffer, "JPEG", exif=exif.tobytes())
    write_tars(
        tmp_path / "in", a=make_tar(("1.jpg", buffer.getvalue()), ("1.txt", "held sideways"))
    )
    manifest = _adopt(
        tmp_path / "in", tmp_path / "out", "size=32", "buckets.max_aspect=2", "buckets.step=8"
    )
    ((_, bucket, _),) = _samples(tmp_path / "in", tmp_path / "out")
    assert manifest.buckets[bucket] == (40, 24)


def test_captions_may_come_from_the_json(tmp_path):
    metas = [{"text": "one"}, {"text": " "}, {}]
    members = [tar_sample(i, meta=meta)[::2] for i, meta in enumerate(metas)]  # without a .txt
    write_tars(tmp_path / "in", a=make_tar(*chain(*members), *tar_sample(3)))
    captions = ("source.caption_field=text", "max_bad_share=0.8")
    manifest = _adopt(tmp_path / "in", tmp_path / "out", *captions)
    assert manifest.settings["caption_field"] == "text"
    assert [key for key, *_ in _samples(tmp_path / "in", tmp_path / "out")] == ["a~~000000000"]
    (part,) = json.loads((tmp_path / "out" / SUMMARY).read_bytes())
    assert part["bad"] == {"no caption": 3}


def test_other_captions_are_another_dataset(tmp_path):
    """Though not a byte of tars and indexes differs: a cache of one is none of the other."""
    write_tars(tmp_path / "in", a=make_tar(*tar_sample(0, meta={"one": "a", "two": "b"})))
    fingerprints = {
        _adopt(tmp_path / "in", tmp_path / field, f"source.caption_field={field}").fingerprint
        for field in ("one", "two", "null")
    }
    assert len(fingerprints) == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_command_goes_on_to_the_same(tmp_path, processes):
    folder, out, whole = tmp_path / "in", tmp_path / "out", tmp_path / "whole"
    write_tars(folder, **{name: make_tar(*tar_sample(i)) for i, name in enumerate("abc")})
    _adopt(folder, whole)
    _adopt(folder, out)
    (out / NAME).unlink()
    for name in ("00000", "00001"):
        (out / "index" / f"{name}.json").unlink()
    kept = (out / "index" / "00002.npy").stat().st_mtime_ns
    _adopt(folder, out, f"processes={processes}")
    same = [files_of(place) for place in (out, whole)]
    for files in same:
        del files[SUMMARY]
    assert same[0] == same[1]
    assert (out / "index" / "00002.npy").stat().st_mtime_ns == kept


# --- what is left out


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ([("b.txt", "c")], "no image"),
        ([("b.gif", b"GIF89a"), ("b.txt", "c")], "no image"),
        ([("b.png", PNG[1])], "no caption"),
        ([("b.png", PNG[1]), ("b.jpg", PNG[2]), ("b.txt", "c")], "member twice"),
        ([*tar_sample(1, "b"), ("b.txt", "again")], "member twice"),
        ([*tar_sample(1, "b")[:1], *tar_sample(2), *tar_sample(1, "b")[1:]], "members apart"),
        ([tar_header("b.png", tarfile.SYMTYPE), ("b.txt", "c")], "not a plain file"),
        (tar_sample(1, "../b"), "not a plain file"),
        (tar_sample(1, "b", image=b""), "bad image"),
        (tar_sample(1, "b", image=b"text"), "bad image"),
        ([("b.png", PNG[1]), ("b.txt", b"\xe9")], "caption is no text"),
        ([*tar_sample(1, "b"), ("b.json", "[1]")], "bad json"),
        ([*tar_sample(1, "b"), ("b.json", '{"a": "\\ud800"}')], "bad json"),
    ],
)
def test_bad_samples_are_left_out_and_listed(tmp_path, members, kind):
    folder = tmp_path / "in"
    write_tars(folder, a=make_tar(*tar_sample(0), *members, *tar_sample(3)))
    _adopt(folder, tmp_path / "out", "max_bad_share=0.4")
    keys = [key for key, *_ in _samples(folder, tmp_path / "out")]
    assert [key for key in keys if key != "a~~000000002"] == ["a~~000000000", "a~~000000003"]
    (bad,) = json.loads((tmp_path / "out" / SKIPPED).read_bytes())["bad"]
    assert bad["kind"] == kind and bad["what"].startswith("a.tar: ")
    assert _refused(folder, tmp_path / "none").wrong.startswith("a.tar: ")


def test_too_many_bad_samples_over_all_tars_are_refused(tmp_path):
    folder = tmp_path / "in"
    write_tars(
        folder,
        a=make_tar(*tar_sample(0), *tar_sample(1)[:1]),
        b=make_tar(*tar_sample(2), *tar_sample(3)),
    )
    error = _refused(folder, tmp_path / "out", "max_bad_share=0.2")
    assert error.wrong.startswith("1 of 4 samples are bad (no caption 1)")
    assert not (tmp_path / "out" / NAME).exists()
    assert _adopt(folder, tmp_path / "out", "max_bad_share=0.25").samples == 3


@pytest.mark.parametrize("check", [True, False])
def test_an_image_that_is_bad_behind_its_header_is_found_by_a_check(tmp_path, check):
    folder = tmp_path / "in"
    write_tars(folder, a=make_tar(*tar_sample(0), *tar_sample(1, image=PNG[1][:200])))
    settings = ("max_bad_share=0.5", f"source.check={check}")
    assert _adopt(folder, tmp_path / "out", *settings).samples == (1 if check else 2)


def test_filters_hold_in_place(tmp_path):
    folder = tmp_path / "in"
    small = encode_png(tiny_image(0, 9))
    members = [*tar_sample(0, meta={"score": 1}), *tar_sample(1, meta={"score": 5})]
    write_tars(folder, a=make_tar(*members, *tar_sample(2, meta={"score": 6}, image=small)))
    _adopt(folder, tmp_path / "out", "filter.fields=['score>=5']", "filter.min_side=10")
    assert [key for key, *_ in _samples(folder, tmp_path / "out")] == ["a~~000000001"]
    assert json.loads((tmp_path / "out" / SKIPPED).read_bytes()) == {
        "filtered": {"min_side": 1, "score>=5": 1}
    }


def test_a_tar_of_which_nothing_is_left_is_not_listed(tmp_path):
    folder = tmp_path / "in"
    write_tars(folder, a=make_tar(), b=make_tar(*tar_sample(0)))
    (shard,) = _adopt(folder, tmp_path / "out").shards
    assert (shard.name, shard.tar) == ("00001", "b.tar")


# --- what only the user can mend


def test_a_tar_that_was_cut_anywhere_is_named(tmp_path):
    content = make_tar(*tar_sample(0), *tar_sample(1))
    end = len(content.rstrip(b"\0"))
    end += -end % 512
    for cut in [0, 1, 511, *range(512, end + 1024, 300), end, end + 512]:
        write_tars(tmp_path / "in", a=make_tar(*tar_sample(0)), b=content[:cut])
        assert _refused(tmp_path / "in", tmp_path / "out").wrong.startswith("b.tar ")
        assert files_of(tmp_path / "out") == {}


@pytest.mark.parametrize("same", [True, False])
def test_a_place_is_free_again_once_a_cut_tar_was_found(tmp_path, same):
    folder = tmp_path / "in"
    out = folder if same else tmp_path / "out"
    write_tars(folder, a=make_tar(*tar_sample(0)), b=make_tar(*tar_sample(1))[:700])
    assert _refused(folder, out).wrong.startswith("b.tar ")
    left = set(files_of(out))
    assert left == ({"a.tar", "b.tar"} if same else set())
    write_tars(folder, b=make_tar(*tar_sample(1)))
    assert _adopt(folder, out).samples == 2


def test_two_tars_in_one_file_are_named(tmp_path):
    write_tars(tmp_path / "in", a=make_tar(*tar_sample(0)) + make_tar(*tar_sample(1)))
    error = _refused(tmp_path / "in", tmp_path / "out")
    assert error.wrong == "a.tar goes on behind its end mark, where no reader would look"


def test_a_prefix_of_files_of_others_is_refused_as_another_place(tmp_path):
    write_tars(tmp_path / "in", a=make_tar(*tar_sample(0)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter").write_text("mine")
    assert "is not empty" in _refused(tmp_path / "in", tmp_path / "out").wrong


def test_a_tar_is_never_held_whole(tmp_path, monkeypatch):
    """Read in pieces that hold neither a member nor a header whole, it gives the same."""
    write_tars(tmp_path / "in", a=make_tar(*tar_sample(0), *tar_sample(1), *tar_sample(2)))
    first = _adopt(tmp_path / "in", tmp_path / "first")
    monkeypatch.setattr(adopt, "PIECE", 100)
    second = _adopt(tmp_path / "in", tmp_path / "second")
    assert second == first
