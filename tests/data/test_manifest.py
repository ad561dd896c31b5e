import json
from dataclasses import asdict, replace

import pytest

from conf.errors import UserError
from data.manifest import (
    NAME,
    Manifest,
    Shard,
    canonical_json,
    load_manifest,
    parse_manifest,
    sha256,
)
from data.spec import LatentSpec, TextSpec
from data.storage import open_prefix

SHARDS = (
    Shard("00000", "shards/00000.tar", (1, 2), 10240, "a" * 64, "b" * 64),
    Shard("00001", "shards/00001.tar", (2, 0), 512, "c" * 64, "d" * 64),
)
LATENTS = LatentSpec(2, 8, 8, "float16", "e", (0.5, -1.0), (1.0, 2.0), (0.5, -1.0), (1.0, 0.5))
TEXT = TextSpec("f", 384, 77, "float16", "g" * 64)
MANIFEST = Manifest(
    kind="latents",
    buckets=((64, 64), (48, 80)),
    members=("moments.npy", "text.npy", "json"),
    shards=SHARDS,
    identity="h",
    settings={"size": 64, "source": {"kind": "日"}},
    parent="i",
    latents=LATENTS,
    text=TEXT,
    origins={"data.url": "s3://a/b"},
)


def _changed(**values):
    return json.dumps({**json.loads(MANIFEST.to_json()), **values}).encode()


def test_what_was_written_is_read():
    assert parse_manifest(MANIFEST.to_json(), "here") == MANIFEST
    plain = replace(MANIFEST, latents=None, text=None, parent=None)
    assert parse_manifest(plain.to_json(), "here") == plain


def test_the_fingerprint_never_changes():
    """Caches and checkpoints hold fingerprints: another version must find the same ones."""
    pinned = "408291820f4a6ad6743bc717cd0e83d4a57a8a3d5a2f60b9dd9a5ca021cc6de7"
    assert MANIFEST.fingerprint == pinned


def test_classes_are_part_of_the_fingerprint():
    classes = replace(MANIFEST, text=replace(TEXT, classes=10))
    assert classes.fingerprint != MANIFEST.fingerprint
    assert parse_manifest(classes.to_json(), "here") == classes
    earlier = json.loads(MANIFEST.to_json())
    del earlier["text"]["classes"]  # as versions without classes wrote it
    assert parse_manifest(json.dumps(earlier).encode(), "here") == MANIFEST


def test_samples_are_counted_over_the_shards():
    assert MANIFEST.samples == json.loads(MANIFEST.to_json())["samples"] == 5


def test_shards_have_their_files():
    assert (SHARDS[0].tar, SHARDS[0].index) == ("shards/00000.tar", "index/00000.npy")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "images"},
        {"members": ("moments.npy",)},
        {"shards": SHARDS[::-1]},
        {"shards": SHARDS[:1]},
        {"shards": (replace(SHARDS[0], buckets=(1, 3)), SHARDS[1])},
        {"shards": (replace(SHARDS[0], sha256="0" * 64), SHARDS[1])},
        {"shards": (replace(SHARDS[0], index_sha256="0" * 64), SHARDS[1])},
        {"parent": None},
        {"latents": replace(LATENTS, scale=(1.0, 0.25))},
        {"latents": replace(LATENTS, autoencoder="other")},
        {"text": replace(TEXT, max_length=32)},
        {"text": None},
    ],
)
def test_the_fingerprint_is_of_all_content(change):
    assert replace(MANIFEST, **change).fingerprint != MANIFEST.fingerprint


def test_the_fingerprint_is_not_of_hints():
    elsewhere = replace(MANIFEST, origins={}, settings={}, identity="other")
    assert elsewhere.fingerprint == MANIFEST.fingerprint


def test_latents_of_an_earlier_version_are_to_be_cached_again():
    """Their manifest is right in itself, and says less than is needed."""
    old = {name: value for name, value in asdict(LATENTS).items() if name != "stored"}
    with pytest.raises(UserError, match="earlier version; cache them again"):
        parse_manifest(_changed(latents=old), "here")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"1",
        b"null",
        b"{}",
        MANIFEST.to_json()[:-20],
        _changed(shards=None),
        _changed(shards=[{"name": "a"}]),
        _changed(shards=[{**json.loads(MANIFEST.to_json())["shards"][0], "colour": 1}]),
        _changed(latents=[1]),
        _changed(latents={"channels": 1}),
        _changed(members=1),
        json.dumps({"format": 2}).encode(),
    ],
)
def test_what_is_no_manifest_is_refused(content):
    with pytest.raises(UserError, match=r"^here: is no manifest"):
        parse_manifest(content, "here")


def test_a_manifest_without_fingerprint_is_refused():
    content = json.loads(MANIFEST.to_json())
    del content["fingerprint"]
    with pytest.raises(UserError, match=r"^here: is no manifest"):
        parse_manifest(json.dumps(content).encode(), "here")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "images"},
        {"members": ["json"]},
        {"parent": "other"},
        {"text": None},
        {"fingerprint": "0" * 64},
        {"shards": []},
    ],
)
def test_a_manifest_that_was_changed_is_refused(change):
    with pytest.raises(UserError, match=r"^here: was changed after it was written"):
        parse_manifest(_changed(**change), "here")


def test_a_newer_format_is_named():
    with pytest.raises(UserError, match=r"^here: has format 3; this version reads format 2$"):
        parse_manifest(_changed(format=3), "here")


def test_a_manifest_of_the_wanted_kind_is_loaded(url):
    prefix = open_prefix(url, "data.url")
    prefix.create(NAME, MANIFEST.to_json())
    assert load_manifest(prefix, "latents") == load_manifest(prefix, "any") == MANIFEST
    with pytest.raises(UserError) as caught:
        load_manifest(prefix, "images")
    assert caught.value.setting == f"data.url={url}"
    assert "dataset of latents, and images are needed" in caught.value.wrong
    assert "`ldm shard`" in caught.value.remedy


def test_a_prefix_without_manifest_holds_no_dataset(url):
    with pytest.raises(UserError) as caught:
        load_manifest(open_prefix(url, "data.url"), "any")
    assert caught.value.setting == f"data.url={url}"
    assert "holds no dataset" in caught.value.wrong


def test_one_value_has_one_spelling():
    assert canonical_json({"b": 1, "a": [1.5, None, "é"]}) == '{"a":[1.5,null,"é"],"b":1}'.encode()
    assert sha256(b"abc").startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize(
    "change",
    [
        {"scale": (1.0,)},
        {"scale": (1.0, 0.0)},
        {"scale": (1.0, float("inf"))},
        {"shift": ()},
        {"mean": (1.0,)},
        {"posterior_std": (1.0,)},
        {"std": (1.0, "2")},
        {"scaling": "twice"},
        {"stored": "draws"},
        {"dtype": "float64"},
        {"views": ()},
        {"views": (1,)},
        {"rms_error": None},
        {"skipped": -1},
    ],
    ids=str,
)
def test_latents_whose_numbers_cannot_be_are_refused(change):
    """With the right fingerprint, as whoever made them so would have it."""
    manifest = replace(MANIFEST, latents=replace(LATENTS, **change))
    with pytest.raises(UserError, match="is no manifest"):
        parse_manifest(manifest.to_json(), "here")


@pytest.mark.parametrize(
    "change",
    [
        {"captions": 0},
        {"models": 0},
        {"padding": 1},
        {"stored": "words"},
        {"pooled_width": -1},
        {"empty_sha256": 5},
    ],
    ids=str,
)
def test_texts_that_cannot_be_are_refused(change):
    manifest = replace(MANIFEST, text=replace(TEXT, **change))
    with pytest.raises(UserError, match="is no manifest"):
        parse_manifest(manifest.to_json(), "here")


@pytest.mark.parametrize(
    "origins",
    [
        None,
        [],
        {"images": 5},
        {"autoencoder": "a path"},
        {"autoencoder": {"url": "x"}},
        {"text_encoder": {"path": "x"}},
    ],
    ids=str,
)
def test_origins_that_lead_nowhere_are_refused(origins):
    with pytest.raises(UserError, match="is no manifest"):
        parse_manifest(_changed(origins=origins), "here")
