import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from conf.errors import UserError
from conf.groups import FolderSource
from data.image import encode_png
from data.manifest import canonical_json, sha256
from data.sources import BadSample, folder
from data.storage import open_prefix
from data.tar import split_name
from tests.helpers.datasets import files_of, run_shard, tiny_image, tiny_images, whole_source


def _folder(path, **settings):
    return whole_source(FolderSource(path=str(path), **settings))


def _fault(source, key):
    """The kind of what is wrong with a pair."""
    with pytest.raises(BadSample) as caught:
        source.pair(key)
    assert "\n" not in str(caught.value) and caught.value.where == f"{key}.png"
    return caught.value.kind


def _refused(path):
    """The error of reading everything in a folder."""
    with pytest.raises(UserError) as caught:
        source = _folder(path)
        for key in source.keys:
            source.pair(key)
    assert caught.value.setting == f"source.path={path}"
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_folder_of_images_with_captions(tmp_path):
    tiny_images(tmp_path, 3, 16)
    tiny_images(tmp_path / "below" / "it", 1, 16)
    source = _folder(tmp_path)
    assert source.keys == ("000", "001", "002", "below~2f~it~2f~000")
    pair = source.pair("001")
    assert (pair.caption, pair.meta["original_size"]) == ("caption 1", [16, 16])
    assert np.array_equal(pair.image, tiny_image(1, 16))


def test_a_folder_may_lie_anywhere(url, tmp_path):
    tiny_images(tmp_path / "here" / "a", 2, 16)
    for name, content in files_of(tmp_path / "here").items():
        open_prefix(url, "out").write(name, content)
    source, local = _folder(url), _folder(tmp_path / "here")
    assert source.keys == local.keys == ("a~2f~000", "a~2f~001")
    for key in source.keys:
        assert np.array_equal(source.pair(key).image, local.pair(key).image)
        assert source.pair(key).caption == local.pair(key).caption


def test_keys_of_any_names_are_safe_and_unique(tmp_path):
    names = ["a/b", "a_b", "a b", "a.b", "a~2f~b", "a-b", "ä", "日本", "A", "..x", "a/b.c/d", "'$&"]
    for i, name in enumerate(names):
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(tiny_image(i, 16)))
        (tmp_path / f"{name}.txt").write_text(name)
    source = _folder(tmp_path)
    assert sorted(source.pair(key).caption for key in source.keys) == sorted(names)
    for key in source.keys:
        assert re.fullmatch(r"[A-Za-z0-9_~-]+", key)
        assert split_name(f"{key}.png") == (key, "png")


def test_only_images_with_captions_are_taken(tmp_path):
    tiny_images(tmp_path, 1, 16)
    (tmp_path / "alone.png").write_bytes(encode_png(tiny_image(1, 16)))
    (tmp_path / "alone too.txt").write_text("no image")
    (tmp_path / "film.gif").write_bytes(b"GIF89a")
    (tmp_path / "film.txt").write_text("no image that we read")
    assert _folder(tmp_path).keys == ("000",)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "a.jpeg", "a.webp", "a.PNG"])
def test_extensions_may_be_large_or_small(tmp_path, name):
    Image.new("RGB", (30, 20), "red").save(tmp_path / name)
    (tmp_path / "a.txt").write_text("  ein Bär \n", encoding="utf-8")
    pair = _folder(tmp_path).pair("a")
    assert (pair.caption, pair.image.shape) == ("ein Bär", (20, 30, 3))
    assert pair.meta["original_size"] == [20, 30]


def test_what_decides_the_pairs_is_in_the_settings(tmp_path):
    tiny_images(tmp_path, 3, 16)
    before = _folder(tmp_path).settings
    assert _folder(tmp_path).settings == before
    (tmp_path / "001.txt").write_text("another caption")
    assert _folder(tmp_path).settings != before
    (tmp_path / "001.txt").unlink()
    assert _folder(tmp_path).settings["count"] == 2


def test_a_caption_mended_at_the_same_length_is_another_source(tmp_path):
    tiny_images(tmp_path, 1, 16)
    before = _folder(tmp_path).settings
    (tmp_path / "000.txt").write_text("caption 1\n")
    os.utime(tmp_path / "000.txt", ns=(1, 1))
    assert _folder(tmp_path).settings != before


def test_a_folder_of_texts_alone_is_the_source_that_it_always_was(tmp_path):
    """Datasets that were begun with an earlier version can be taken up."""
    tiny_images(tmp_path, 2, 16)
    files = open_prefix(str(tmp_path), "out").files()
    assert _folder(tmp_path).settings == {
        "path": str(tmp_path),
        "count": 2,
        "content": sha256(canonical_json([(name, files[name]) for name in sorted(files)])),
    }


# --- json beside the images


@pytest.fixture
def jsons(tmp_path):
    """000 has a .txt alone, 001 a .json too, and 002 a .json alone."""
    tiny_images(tmp_path, 3, 16)
    (tmp_path / "002.txt").unlink()
    for i in (1, 2):
        meta = {"caption": f"json {i}", "alt": f"alt {i}", "score": i, "original_size": 9}
        (tmp_path / f"00{i}.json").write_text(json.dumps(meta))
    return tmp_path


def test_a_caption_is_the_text_or_else_the_jsons(jsons):
    source = _folder(jsons)
    assert source.keys == ("000", "001", "002")
    assert [source.pair(key).caption for key in source.keys] == ["caption 0", "caption 1", "json 2"]


def test_a_field_that_is_named_is_the_caption_whatever_a_text_says(jsons):
    source = _folder(jsons, caption_field="alt")
    assert source.keys == ("001", "002")
    assert [source.pair(key).caption for key in source.keys] == ["alt 1", "alt 2"]
    assert source.settings["caption_field"] == "alt"


def test_what_a_json_says_comes_with_the_pair(jsons):
    source = _folder(jsons)
    assert source.pair("000").meta == {"group": "000", "original_size": [16, 16]}
    assert source.pair("001").meta == {
        "alt": "alt 1",
        "caption": "json 1",
        "group": "001",
        "original_size": [16, 16],
        "score": 1,
    }


def test_filters_go_by_what_a_json_says(jsons, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    settings = ("source=folder", f"source.path={jsons}")
    assert run_shard(out, *settings, "filter.fields=['score>=2']").samples == 1


@pytest.mark.parametrize("field", [None, "alt"])
def test_a_json_that_changed_is_another_source(jsons, field):
    before = _folder(jsons, caption_field=field).settings
    os.utime(jsons / "001.json", ns=(1, 1))
    assert _folder(jsons, caption_field=field).settings != before


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("", "bad json"),
        ("[]", "bad json"),
        ('{"caption": "\\ud800"}', "bad json"),
        ("[" * 100_000, "bad json"),
        ("{}", "no caption"),
        ('{"caption": " "}', "no caption"),
        ('{"caption": 3}', "no caption"),
        (" " * 2000, "too large"),
    ],
)
def test_a_json_that_cannot_be_used_is_named(jsons, monkeypatch, content, kind):
    monkeypatch.setattr(folder, "MAX_TEXT_BYTES", 150_000 if "[" in content else 1000)
    (jsons / "002.json").write_text(content)
    assert _fault(_folder(jsons), "002") == kind
    if kind != "no caption":  # nor is it passed over where it is not asked for a caption
        (jsons / "001.json").write_text(content)
        assert _fault(_folder(jsons), "001") == kind


def test_a_byte_order_mark_is_no_part_of_a_caption(jsons):
    for name in ("001.txt", "002.json"):
        (jsons / name).write_bytes(b"\xef\xbb\xbf" + (jsons / name).read_bytes())
    source = _folder(jsons)
    assert [source.pair(key).caption for key in source.keys] == ["caption 0", "caption 1", "json 2"]


# --- what is refused


@pytest.mark.parametrize("name", ["001.png", "001.txt", "001.json"])
@pytest.mark.parametrize("link", [True, False])
def test_a_file_that_is_gone_is_named(jsons, name, link):
    if link:
        (jsons / name).rename(jsons / "elsewhere")
        (jsons / name).symlink_to(jsons / "elsewhere")
    source = _folder(jsons)
    (jsons / ("elsewhere" if link else name)).unlink()
    assert _fault(source, "001") == "no such file"


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_folder_without_pairs_is_refused(tmp_path, name):
    error = _refused(tmp_path / name if name else tmp_path)
    assert error.wrong == "has no pairs"
    assert ".txt" in error.remedy


def test_a_place_without_pairs_is_refused_on_every_storage(url):
    assert _refused(url).wrong == "has no pairs"


@pytest.mark.parametrize("content", [b"", b"no image", b"GIF89a", encode_png(tiny_image(0))[:99]])
def test_a_broken_image_is_named(tmp_path, content):
    tiny_images(tmp_path, 2, 16)
    (tmp_path / "001.png").write_bytes(content)
    error = _refused(tmp_path)
    assert error.wrong.startswith("001.png: ")
    assert error.remedy == "mend or remove it, or allow a max_bad_share"


def test_a_caption_that_is_no_text_is_named(tmp_path):
    tiny_images(tmp_path, 2, 16)
    (tmp_path / "001.txt").write_bytes(b"caf\xe9")
    assert "001" in _refused(tmp_path).wrong


def test_two_images_of_one_caption_are_refused(tmp_path):
    tiny_images(tmp_path, 2, 16)
    Image.new("RGB", (16, 16)).save(tmp_path / "001.jpg")
    error = _refused(tmp_path)
    assert "001.jpg" in error.wrong and "001.png" in error.wrong


@pytest.mark.parametrize("url", ["pipe:cat a", "ftp://host/a", "a::b"])
def test_a_scheme_that_is_not_allowed_is_refused(url):
    with pytest.raises(UserError, match="is not a URL that can be opened"):
        _folder(url)
