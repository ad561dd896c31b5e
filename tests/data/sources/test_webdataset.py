import io
import json
import pickle
import tarfile
import uuid
from types import SimpleNamespace

import numpy as np
import pytest

from conf.errors import UserError
from conf.groups import WebDatasetSource
from data import ingest, storage
from data.image import encode_png
from data.sources import BadSample, open_part, tars
from data.sources.tars import list_tars
from data.sources.webdataset import SearchTask, search_tar, searches, webdataset_source
from data.storage import open_prefix
from tests.helpers.datasets import files_of, pickled_array, run_shard, tiny_image

PNG = [encode_png(tiny_image(i, 16)) for i in range(6)]


def _tar(*members):
    """A tar of (name, content) or of headers as they are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            content = content if isinstance(content, bytes) else content.encode()
            item = tarfile.TarInfo(name)
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
    return buffer.getvalue()


def _sample(number, key=None, meta=None):
    key = key or f"{number:09d}"
    members = [(f"{key}.png", PNG[number]), (f"{key}.txt", f"caption {number}\n")]
    return members if meta is None else [*members, (f"{key}.json", json.dumps(meta))]


def _header(name, kind, link="000000000.png"):
    item = tarfile.TarInfo(name)
    item.type, item.linkname = kind, link
    return item


def _source(folder, **settings):
    """All samples of the tars in a folder, as a process that is given all of them sees them."""
    config = WebDatasetSource(path=str(folder), **settings)
    found, out = list_tars(config), open_prefix(f"memory://{uuid.uuid4().hex}", "out")
    for number, tar in enumerate(found.names):
        search_tar(config, SearchTask(tar, number, out.url))
    source = webdataset_source(found, searches(out), out)
    part = open_part(config, 16, pickle.loads(pickle.dumps(source.part(0, source.samples))))
    return SimpleNamespace(settings=source.settings, keys=part.keys, pair=part.pair, source=source)


def _one(tmp_path, *members):
    """The source of one tar."""
    (tmp_path / "00000.tar").write_bytes(_tar(*members))
    return _source(tmp_path)


def _faults(source):
    """Key to kind of fault, of every sample; None if it is good."""
    kinds = {}
    for key in source.keys:
        try:
            source.pair(key)
            kinds[key] = None
        except BadSample as fault:
            assert "\n" not in str(fault) and fault.where.split(": ")[0] == "00000.tar"
            kinds[key] = fault.kind
    return kinds


# --- what is read


def test_tars_give_their_samples(tmp_path):
    (tmp_path / "below").mkdir()
    meta = {"aesthetic": 6.5, "width": 99, "original_size": 1, "group": 3, "x": float("nan")}
    (tmp_path / "00000.tar").write_bytes(_tar(*_sample(0), *_sample(1, meta=meta)))
    (tmp_path / "below" / "00000.tar").write_bytes(_tar(*_sample(2)))
    (tmp_path / "00000_stats.json").write_text("{}")
    source = _source(tmp_path)
    assert source.keys == (
        "00000~~000000000",
        "00000~~000000001",
        "below~2f~00000~~000000002",
    )
    for i, key in enumerate(source.keys):
        pair = source.pair(key)
        assert np.array_equal(pair.image, tiny_image(i, 16))
        assert (pair.key, pair.caption) == (key, f"caption {i}")
    assert source.pair(source.keys[0]).meta == {
        "original_size": [16, 16],
        "group": source.keys[0],
    }
    assert source.pair(source.keys[1]).meta == {
        "aesthetic": 6.5,
        "width": 99,
        "original_size": [16, 16],
        "group": "3",
        "x": None,
    }


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    text = '{"a": 1e999, "b": -1e999, "c": Infinity, "d": 1e9}'
    source = _one(tmp_path, *_sample(0), ("000000000.json", text))
    meta = source.pair(source.keys[0]).meta
    assert [meta[name] for name in "abcd"] == [None, None, None, 1e9]


def test_tars_may_lie_anywhere(url, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "a.tar").write_bytes(_tar(*_sample(0), *_sample(1, meta={"a": 1})))
    for name, content in files_of(folder).items():
        open_prefix(url, "out").write(name, content)
    here, there = _source(folder), _source(url)
    assert there.keys == here.keys and len(here.keys) == 2
    for key in here.keys:
        assert there.pair(key).meta == here.pair(key).meta
        assert np.array_equal(there.pair(key).image, here.pair(key).image)


def test_members_of_a_key_need_not_stand_together(tmp_path):
    pictures, texts = zip(*(_sample(i) for i in range(4)), strict=True)
    filler = ("000000000.npy", bytes(2**18))
    source = _one(tmp_path, *pictures, filler, *reversed(texts))
    assert [source.pair(key).caption for key in source.keys] == [f"caption {i}" for i in range(4)]
    for i, key in enumerate(source.keys):
        assert np.array_equal(source.pair(key).image, tiny_image(i, 16))


def test_a_sample_is_one_read_and_what_lies_between_far_members_is_not_read(tmp_path, monkeypatch):
    far = ("000000001.npy", bytes(2**18))
    source = _one(tmp_path, *_sample(0), *_sample(1)[:1], far, *_sample(1)[1:])
    read, lengths = storage.Prefix.read_range, []

    def counted(self, name, start, length):
        lengths.append(length)
        return read(self, name, start, length)

    monkeypatch.setattr(storage.Prefix, "read_range", counted)
    for key, reads in zip(source.keys, (1, 2), strict=True):
        lengths.clear()
        source.pair(key)
        assert len(lengths) == reads and sum(lengths) < 2**17


def test_names_may_be_spelt_in_other_ways(tmp_path):
    members = [_header("a", tarfile.DIRTYPE), ("./a/1.PNG", PNG[0]), ("a/1.TXT", "c")]
    source = _one(tmp_path, *members)
    assert source.keys == ("00000~~a~2f~1",)
    assert source.pair(source.keys[0]).caption == "c"


def test_other_members_are_not_opened(tmp_path):
    source = _one(tmp_path, *_sample(0), ("000000000.pyd", pickled_array()))
    assert source.pair(source.keys[0]).caption == "caption 0"
    (found,) = _found(source.source)
    assert sorted(found["members"]) == ["png", "txt"]


def _found(source):
    """What was kept of the searches."""
    parts = source.part(0, source.samples)
    files = [json.loads(open_prefix(out, "out").read(name)) for out, name, _, _ in parts]
    return [place for file in files for place in file]


def test_a_part_is_a_stretch_of_tars_in_order(tmp_path):
    for tar, count in (("a", 2), ("b", 0), ("c", 1), ("d", 3)):
        (tmp_path / f"{tar}.tar").write_bytes(_tar(*(m for i in range(count) for m in _sample(i))))
    whole = _source(tmp_path)
    assert [key.partition("~~")[0] for key in whole.keys] == list("aacddd")
    config = WebDatasetSource(path=str(tmp_path))
    for first in range(6):
        for last in range(first + 1, 7):
            part = open_part(config, 16, whole.source.part(first, last))
            assert part.keys == whole.keys[first:last]
            assert part.pair(part.keys[-1]).caption == whole.pair(whole.keys[last - 1]).caption


def test_keys_of_folders_and_tars_do_not_meet(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a.tar").write_bytes(_tar(*_sample(0, "b/c")))
    (tmp_path / "a" / "b.tar").write_bytes(_tar(*_sample(1, "c")))
    (tmp_path / "a.TAR").write_bytes(_tar(*_sample(2, "b/c")))
    source = _source(tmp_path)
    assert sorted(source.pair(key).caption for key in source.keys) == [
        f"caption {i}" for i in range(3)
    ]


def test_captions_may_come_from_the_json(tmp_path):
    metas = [{"text": " one "}, {"text": ""}, {"text": 3}, {}, None]
    members = [m for i, meta in enumerate(metas) for m in _sample(i, meta=meta)]
    (tmp_path / "00000.tar").write_bytes(_tar(*members))
    source = _source(tmp_path, caption_field="text")
    assert source.pair(source.keys[0]).caption == "one"
    assert list(_faults(source).values()) == [None, *["no caption"] * 4]
    assert source.settings["caption_field"] == "text"
    (tmp_path / "00000.tar").write_bytes(_tar(members[0], members[2]))  # without a .txt
    assert list(_faults(_source(tmp_path, caption_field="text")).values()) == [None]


def test_tars_that_change_are_another_source(tmp_path):
    before = _one(tmp_path, *_sample(0)).settings
    assert _one(tmp_path, *_sample(0)).settings["tars"] == before["tars"] == 1
    assert _one(tmp_path, *_sample(0), *_sample(1), *_sample(2), *_sample(3)).settings != before


# --- what is bad in a sample


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ([("b.txt", "c")], "no image"),
        ([("b.json", "{}")], "no image"),
        ([("b.gif", b"GIF89a"), ("b.txt", "c")], "no image"),
        ([("b.png", PNG[1])], "no caption"),
        ([("b.png", PNG[1]), ("b.jpg", PNG[2]), ("b.txt", "c")], "member twice"),
        ([*_sample(1, "b"), *_sample(2), ("b.txt", "again")], "member twice"),
        ([_header("b.png", tarfile.SYMTYPE), ("b.txt", "c")], "not a plain file"),
        ([_header("b.png", tarfile.LNKTYPE), ("b.txt", "c")], "not a plain file"),
        ([("b.txt", "c"), _header("b.png", tarfile.CHRTYPE)], "not a plain file"),
        ([("b.txt", "c"), _header("b.png", tarfile.FIFOTYPE)], "not a plain file"),
        ([*_sample(1, "b"), _header("b.npy", tarfile.SYMTYPE, "/etc/passwd")], "not a plain file"),
        (_sample(1, "../b"), "not a plain file"),
        (_sample(1, "/b"), "not a plain file"),
        (_sample(1, "a/../b"), "not a plain file"),
        ([("b.png", PNG[1][:60]), ("b.txt", "c")], "bad image"),
        ([("b.png", b""), ("b.txt", "c")], "bad image"),
        ([("b.png", PNG[1]), ("b.txt", b"\xe9")], "caption is no text"),
        ([*_sample(1, "b"), ("b.json", "[1]")], "bad json"),
        ([*_sample(1, "b"), ("b.json", b"\xe9")], "bad json"),
        ([*_sample(1, "b"), ("b.json", "[" * 99999)], "bad json"),
        ([*_sample(1, "b"), ("b.json", '{"a": "\\ud800"}')], "bad json"),
    ],
)
def test_a_bad_sample_is_named_and_the_others_are_read(tmp_path, members, kind):
    source = _one(tmp_path, *_sample(0), *members, *_sample(3))
    kinds = _faults(source)
    assert kinds.pop("00000~~000000000") is None
    assert kinds.pop("00000~~000000003") is None
    kinds.pop("00000~~000000002", None)
    assert list(kinds.values()) == [kind]


def test_a_member_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MAX_TEXT_BYTES", 20)
    source = _one(tmp_path, *_sample(0), *_sample(1, meta={"a": "b" * 20}))
    assert list(_faults(source).values()) == [None, "too large"]


# --- what only the user can mend


def _refused(folder):
    with pytest.raises(UserError) as caught:
        _source(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.setting == f"source.path={folder}"
    return caught.value


def test_a_tar_that_was_cut_anywhere_is_named(tmp_path):
    content = _tar(*_sample(0), *_sample(1))
    end = len(content.rstrip(b"\0"))
    end += -end % 512
    for cut in [0, 1, 300, 511, *range(512, end + 1024, 100), end, end + 512]:
        (tmp_path / "7.tar").write_bytes(content[:cut])
        assert _refused(tmp_path).wrong.startswith("7.tar ")


def test_a_damaged_header_is_named(tmp_path):
    content = bytearray(_tar(*_sample(0), *_sample(1)))
    content[content.index(b"000000001.png")] ^= 1
    (tmp_path / "7.tar").write_bytes(content)
    assert "no end mark" in _refused(tmp_path).wrong


@pytest.mark.timeout(20)
def test_a_member_of_a_negative_size_is_named(tmp_path):
    """Stock tarfile steps back over it and reads the same headers for ever."""
    item = tarfile.TarInfo("b.txt")
    header = bytearray(item.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (2**96 - 1536).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
    (tmp_path / "7.tar").write_bytes(_tar(*_sample(0))[:2560] + bytes(header) + bytes(1024))
    assert "7.tar" in _refused(tmp_path).wrong


def test_a_name_of_any_bytes_is_printed_on_one_line(tmp_path):
    item = tarfile.TarInfo("a\nb\udcff.png")
    source = _one(tmp_path, *_sample(0), item)
    (key,) = set(source.keys) - {"00000~~000000000"}
    with pytest.raises(BadSample) as caught:
        source.pair(key)
    assert caught.value.where == "00000.tar: a\\nb\\udcff"
    assert "\n" not in str(caught.value) and str(caught.value).encode()


@pytest.mark.parametrize("content", [b"text" * 999, b"\x1f\x8b" + bytes(2000)])
def test_what_is_no_tar_is_named(tmp_path, content):
    (tmp_path / "7.tar").write_bytes(content)
    assert _refused(tmp_path).wrong.startswith("7.tar ")


@pytest.mark.parametrize("members", [None, []])
def test_a_prefix_without_samples_is_refused(tmp_path, members):
    folder = tmp_path / "in"
    folder.mkdir()
    if members is not None:
        (folder / "7.tar").write_bytes(_tar(*members))
    with pytest.raises(UserError, match="has no pairs"):
        run_shard(tmp_path / "out", "source=webdataset", f"source.path={folder}")
    assert files_of(tmp_path / "out") == {}


def test_a_place_is_free_again_once_a_cut_tar_was_found(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    whole = _tar(*_sample(0))
    (folder / "6.tar").write_bytes(whole)
    (folder / "7.tar").write_bytes(whole.rstrip(b"\0"))
    with pytest.raises(UserError, match=r"7\.tar is not a whole tar"):
        run_shard(out, "source=webdataset", f"source.path={folder}")
    (folder / "7.tar").write_bytes(whole)
    assert run_shard(out, "source=webdataset", f"source.path={folder}").samples == 2


def test_what_was_found_of_a_tar_is_not_searched_for_again(tmp_path, monkeypatch):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for tar in ("6", "7"):
        (folder / f"{tar}.tar").write_bytes(_tar(*_sample(0), *_sample(1)))
    settings = ("source=webdataset", f"source.path={folder}", "shard_samples=3")
    make, searched = ingest.make_shard, []
    search = ingest.search_tar

    def counted(config, task):
        searched.append(task.tar)
        search(config, task)

    monkeypatch.setattr(ingest, "search_tar", counted)
    monkeypatch.setattr(ingest, "make_shard", lambda *_: pytest.fail("interrupted"))
    with pytest.raises(pytest.fail.Exception):
        run_shard(out, *settings)
    assert searched == ["6.tar", "7.tar"] and len(list((out / "search").iterdir())) == 2
    monkeypatch.setattr(ingest, "make_shard", make)
    assert run_shard(out, *settings).samples == 4
    assert searched == ["6.tar", "7.tar"] and not (out / "search").exists()
