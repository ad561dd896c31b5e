"""Whatever a cache depends on may be changed behind its back: it is refused by name, or it is fit.

What does not matter changes nothing.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conf.errors import RunError, UserError
from data.image import encode_png
from data.manifest import NAME, Manifest
from data.tar import CorruptShard
from tests.helpers.cache_processes import visible_files
from tests.helpers.cache_stage import (
    SHARDS,
    Stage,
    build_stage,
    edit_json,
    flip_byte,
    flip_weights,
    weights_of,
)
from tests.helpers.caches import train_small
from tests.helpers.damage import manifest_of
from tests.helpers.datasets import files_of, tiny_image
from tests.helpers.latents import checkpoint_of
from tests.helpers.raw_images import SIDE
from tests.helpers.tiny_bert import tiny_bert

Change = Callable[[Stage], None]


@pytest.fixture
def stage(autoencoder: Path, tmp_path: Path) -> Stage:
    """A stage whose cache is made."""
    stage = build_stage(tmp_path, autoencoder)
    stage.cache()
    return stage


def other_autoencoder(stage: Stage) -> None:
    shutil.rmtree(stage.autoencoder)
    train_small(stage.images, stage.autoencoder, seed=7)


def bert_config(stage: Stage) -> None:
    edit_json(stage.bert / "config.json", lambda raw: raw.update(layer_norm_eps=1e-3))


def bert_tokenizer(stage: Stage) -> None:
    edit_json(stage.bert / "tokenizer_config.json", lambda raw: raw.update(do_lower_case=False))


def bert_vocabulary(stage: Stage) -> None:
    file = stage.bert / "vocab.txt"
    file.write_text(file.read_text().replace("cat\ndog\n", "dog\ncat\n"))


def one_image(stage: Stage) -> None:
    png = encode_png(tiny_image(99, SIDE))
    stage.write_images(change=lambda number: {"png": png} if number == 4 else {})


def one_caption(stage: Stage) -> None:
    stage.write_images(change=lambda number: {"txt": b"a hat"} if number == 4 else {})


def larger_images(stage: Stage) -> None:
    stage.write_images(change=lambda number: {"size": (32, 32)}, buckets=((32, 32),))


def other_crop(stage: Stage) -> None:
    """The same pictures, cut one pixel further to the right."""

    def moved(number: int) -> dict[str, Any]:
        return {"png": encode_png(tiny_image(number, SIDE, SIDE + 1)[:, 1:])}

    stage.write_images(change=moved)


def fewer_images(stage: Stage) -> None:
    stage.write_images(shards=SHARDS[:1])


ORIGINS: dict[str, tuple[Change, str]] = {
    "a byte of the autoencoder": (lambda stage: flip_weights(stage.autoencoder), "autoencoder"),
    "another autoencoder": (other_autoencoder, "autoencoder"),
    "a byte of the text encoder": (
        lambda stage: flip_byte(stage.bert / "model.safetensors"),
        "text_encoder",
    ),
    "the text encoder's config": (bert_config, "text_encoder"),
    "its tokenizer's config": (bert_tokenizer, "text_encoder"),
    "its vocabulary": (bert_vocabulary, "text_encoder"),
    "one image": (one_image, "images"),
    "one caption": (one_caption, "images"),
    "images of another size": (larger_images, "images"),
    "images of another crop": (other_crop, "images"),
    "fewer images": (fewer_images, "images"),
}


def edited(change: Callable[[Any], None]) -> Change:
    """An edit of the manifest by hand."""
    return lambda stage: edit_json(stage.latents / NAME, change)


def forged(change: Callable[[Manifest], Manifest]) -> Change:
    """An edit of the manifest under its right fingerprint."""

    def forge(stage: Stage) -> None:
        (stage.latents / NAME).write_bytes(change(manifest_of(stage.latents)).to_json())

    return forge


def spec(name: str, value: Any) -> Change:
    return edited(lambda raw: raw["latents"].update({name: value}))


def forged_spec(**changes: Any) -> Change:
    return forged(lambda made: replace(made, latents=replace(made.latents, **changes)))


def first_tar(stage: Stage) -> Path:
    return stage.latents / manifest_of(stage.latents).shards[0].tar


def first_index(stage: Stage) -> Path:
    return stage.latents / manifest_of(stage.latents).shards[0].index


def cut_tar(stage: Stage) -> None:
    content = first_tar(stage).read_bytes()
    first_tar(stage).write_bytes(content[: len(content) // 2])


def flip_every_payload(stage: Stage) -> None:
    """A byte in each moments of the first shard: whatever the order, one comes first."""
    content = bytearray(first_tar(stage).read_bytes())
    start = 0
    while (start := content.find(b"\x93NUMPY", start)) >= 0:
        content[start + 130] ^= 1
        start += 1
    first_tar(stage).write_bytes(content)


PARTS: dict[str, tuple[Change, str]] = {
    "scale": (spec("scale", [2.0] * 16), "changed after it was written"),
    "shift": (spec("shift", [2.0] * 16), "changed after it was written"),
    "dtype": (spec("dtype", "float32"), "changed after it was written"),
    "stored": (spec("stored", "mean"), "changed after it was written"),
    "mean": (spec("mean", [0.5] * 16), "changed after it was written"),
    "the autoencoder": (spec("autoencoder", "0" * 64), "changed after it was written"),
    "parent": (edited(lambda raw: raw.update(parent="0" * 64)), "changed after it was written"),
    "a shard's sha256": (
        edited(lambda raw: raw["shards"][1].update(sha256="0" * 64)),
        "changed after it was written",
    ),
    "padding": (edited(lambda raw: raw["text"].update(padding=True)), "changed after"),
    "a forged parent": (forged(lambda made: replace(made, parent="0" * 64)), "images"),
    "a forged autoencoder": (forged_spec(autoencoder="0" * 64), "autoencoder"),
    "a forged stored": (forged_spec(stored="mean"), "does not say what its latents"),
    "a forged number of views": (
        forged_spec(views=("center", "flipped")),
        "does not say what its latents",
    ),
    "the empty caption": (
        lambda stage: flip_byte(stage.latents / "empty.text.npy"),
        "empty.text.npy",
    ),
    "no empty caption": (
        lambda stage: (stage.latents / "empty.text.npy").unlink(),
        "empty.text.npy.*missing",
    ),
    "an index": (lambda stage: flip_byte(first_index(stage)), "is not the index"),
    "no index": (lambda stage: first_index(stage).unlink(), "missing"),
    "a cut tar": (cut_tar, "bytes"),
    "bytes in a tar": (flip_every_payload, "are not those of the index"),
    "no tar": (lambda stage: first_tar(stage).unlink(), "missing"),
}


def assert_refused_in_training(stage: Stage, match: str, *more: str) -> None:
    """Before step 1, with no line of metrics and no checkpoint; nothing but the claim is there."""
    before = files_of(stage.latents)
    with pytest.raises((UserError, CorruptShard), match=match):
        stage.train(*more)
    assert files_of(stage.latents) == before
    written = {name.partition("/")[0] for name in files_of(stage.run)} if stage.run.exists() else {}
    lineage = {"lineage.json", "code.diff"}  # the diff, where this is tested before a commit
    assert {*written} <= {"settings.json", "config.yaml", "metrics.jsonl"} | lineage
    if "metrics.jsonl" in written:
        assert (stage.run / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("name", ORIGINS)
def test_training_refuses_a_cache_whose_origin_has_changed(stage: Stage, name: str) -> None:
    change, match = ORIGINS[name]
    change(stage)
    assert_refused_in_training(stage, f"stale: its {match} ")
    assert not stage.run.exists()


@pytest.mark.parametrize("name", PARTS)
def test_training_refuses_a_cache_that_was_changed_itself(stage: Stage, name: str) -> None:
    change, match = PARTS[name]
    change(stage)
    assert_refused_in_training(stage, match)


ASKED: dict[str, tuple[list[str], str]] = {
    "an autoencoder": (
        ["autoencoder=trained", "autoencoder.url={other}/autoencoder"],
        "another autoencoder ",
    ),
    "a text encoder": (
        ["text_encoder=minilm", "text_encoder.path={other}/bert"],
        "another text_encoder ",
    ),
    "a length": (
        ["text_encoder=minilm", "text_encoder.path={bert}", "text_encoder.max_length=8"],
        "max_length",
    ),
    "padding": (
        [
            "text_encoder=minilm",
            "text_encoder.path={bert}",
            "text_encoder.max_length=16",
            "text_encoder.padding=true",
        ],
        "text_encoder",
    ),
    "a layer": (
        [
            "text_encoder=minilm",
            "text_encoder.path={bert}",
            "text_encoder.max_length=16",
            "text_encoder.layer=-2",
        ],
        "text_encoder",
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_training_refuses_a_cache_of_other_encoders_than_are_asked_for(
    stage: Stage, tmp_path: Path, name: str
) -> None:
    other = tmp_path / "other"
    tiny_bert(other / "bert", seed=1)
    train_small(stage.images, other / "autoencoder", seed=7)
    settings, match = ASKED[name]
    told = [setting.format(other=other, bert=stage.bert) for setting in settings]
    assert_refused_in_training(stage, match, *told)
    assert not stage.run.exists()


def test_training_takes_the_encoders_that_are_asked_for(stage: Stage) -> None:
    text = ["text_encoder=minilm", f"text_encoder.path={stage.bert}", "text_encoder.max_length=16"]
    autoencoder = ["autoencoder=trained", f"autoencoder.url={stage.autoencoder}"]
    stage.train(*text, *autoencoder, "train.samples=8")
    assert checkpoint_of(stage.run).progress.samples_seen == 8


SETTINGS = {
    "encoding.dtype=float32": "encoding.dtype is float16",
    "encoding.dtype=bfloat16": "encoding.dtype is float16",
    "encoding.store=mean": "encoding.store is moments",
    "encoding.precision=bf16": "encoding.precision is fp32",
    "encoding.flip=true": "encoding.flip is False",
    "encoding.crops=1": "encoding.crop",
    "encoding.captions=[caption]": "encoding.captions",
    "encoding.text=ids": "encoding.text is embeddings",
    "text_encoder.max_length=8": "max_length is 16",
    "text_encoder.padding=true": "padding is False",
    "text_encoder.layer=-2": "text_encoder is",
    "text_encoder.pooled=pooled": "text_encoder is",
    "deduplicate=true": "deduplicate is False",
}


def meta_with_caption(number: int) -> dict[str, Any]:
    meta = {"original_size": [SIDE, SIDE], "caption": f"a hat {number}"}
    return {"json": json.dumps(meta).encode()}


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "begun"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_another_cache_into_the_same_place_is_refused(
    stage: Stage, setting: str, finished: bool
) -> None:
    assert_refused_in_caching(stage, SETTINGS[setting], finished, setting)


def assert_refused_in_caching(stage: Stage, match: str, finished: bool, *more: str) -> None:
    if not finished:
        (stage.latents / NAME).unlink()
        next((stage.latents / "index").glob("00001-*.json")).unlink()
    before = files_of(stage.latents)
    with pytest.raises(UserError, match=f"out={stage.latents}.*there {match}"):
        stage.cache(*more)
    assert files_of(stage.latents) == before


@pytest.mark.parametrize("name", ORIGINS)
def test_a_cache_of_changed_origins_into_the_same_place_is_refused(stage: Stage, name: str) -> None:
    change, match = ORIGINS[name]
    change(stage)
    match = "(images|buckets)" if match == "images" else match
    assert_refused_in_caching(stage, match, finished=True)


def test_another_crop_seed_into_the_same_place_is_refused(stage: Stage) -> None:
    shutil.rmtree(stage.latents)
    stage.cache("encoding.crops=1")
    more = ("encoding.crops=1", "encoding.crop_seed=1")
    assert_refused_in_caching(stage, "encoding.crop_seed is 0", True, *more)
    more = ("encoding.crops=1", "encoding.crop_zoom=1.5")
    assert_refused_in_caching(stage, "encoding.crop_zoom is 1.125", True, *more)


def test_no_size_is_begun_where_another_is_refused(stage: Stage) -> None:
    shutil.rmtree(stage.latents)
    stage.cache("sizes=[16]")
    before = files_of(stage.latents)
    with pytest.raises(UserError, match=r"out=.*/16: holds other work: there encoding\.dtype is"):
        stage.cache("sizes=[8,16]", "encoding.dtype=float32")
    assert files_of(stage.latents) == before


def test_a_damaged_autoencoder_is_no_autoencoder(stage: Stage) -> None:
    """One byte, which its commit does not know of."""
    flip_byte(weights_of(stage.autoencoder))
    before = files_of(stage.latents)
    with pytest.raises((UserError, RunError), match=r"ema\.safetensors|autoencoder"):
        stage.cache("encoding.dtype=float32")
    assert files_of(stage.latents) == before


@pytest.mark.parametrize(
    "other", ["encoding.dtype=float32", "encoding.store=mean", "text_encoder.max_length=3"]
)
def test_a_run_does_not_resume_on_another_cache_at_the_same_place(stage: Stage, other: str) -> None:
    stage.train("train.samples=8")
    before = files_of(stage.run)
    shutil.rmtree(stage.latents)
    stage.cache(other)
    with pytest.raises(UserError, match=r"data\.fingerprints"):
        stage.train("train.samples=16")
    assert files_of(stage.run) == before


def test_a_run_does_not_resume_on_a_cache_with_another_scale(stage: Stage) -> None:
    stage.train("train.samples=8")
    before = files_of(stage.run)
    forged_spec(scale=(2.0,) * 16)(stage)
    with pytest.raises(UserError, match=r"data\.fingerprints"):
        stage.train("train.samples=16")
    assert files_of(stage.run) == before


def test_a_run_resumes_on_the_same_cache_made_again(stage: Stage) -> None:
    stage.train("train.samples=8")
    shutil.rmtree(stage.latents)
    stage.cache("data.threads=1")
    stage.train("train.samples=16")
    assert checkpoint_of(stage.run).progress.samples_seen == 16


@pytest.mark.parametrize(
    "setting",
    [
        "data.threads=1",
        "data.threads=7",
        "data.memory_gb=0.001",
        "cluster.processes=2",
        "max_bad_share=0.5",
        "micro_batch_size=8",
        "micro_batch_size=3",
    ],
)
def test_a_setting_that_does_not_matter_changes_nothing(stage: Stage, setting: str) -> None:
    before = files_of(stage.latents)
    stage.cache(setting)
    assert files_of(stage.latents) == before
    shutil.rmtree(stage.latents)
    made = stage.cache(setting)
    after = files_of(stage.latents)
    for files in (before, after):
        del files["summary.json"]
    if setting == "micro_batch_size=3":  # last bits may differ, names and identity may not
        assert json.loads(before[NAME])["identity"] == made.identity
        assert after["settings.json"] == before["settings.json"]
        return
    assert after == before


def test_where_weights_and_images_lie_changes_nothing_but_the_hints(stage: Stage) -> None:
    before = visible_files(stage.latents)
    for name in ("images", "autoencoder", "bert"):
        (stage.folder / name).rename(stage.folder / f"moved_{name}")
    moved = [f"data.url={stage.folder}/moved_images"]
    moved += [f"autoencoder.url={stage.folder}/moved_autoencoder"]
    moved += [f"text_encoder.path={stage.folder}/moved_bert"]
    stage.cache(*moved)
    assert visible_files(stage.latents) == before
    shutil.rmtree(stage.latents)
    stage.cache(*moved)
    after = visible_files(stage.latents)
    old, new = (json.loads(files.pop(NAME)) for files in (before, after))
    assert after == before
    assert old.pop("origins") != new.pop("origins")
    assert old == new


def test_training_goes_on_without_origins_that_are_gone_and_says_so(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("images", "autoencoder", "bert"):
        shutil.rmtree(stage.folder / name)
    stage.train("train.samples=8")
    said = capsys.readouterr().out
    for name in ("images", "autoencoder", "text_encoder"):
        assert f"is not compared with what it was cached from, its {name} at " in said


def test_notes_beside_a_text_encoder_change_nothing(stage: Stage) -> None:
    for name in ("README.txt", "notes.json"):
        (stage.bert / name).write_text("a note")
    stage.train("train.samples=8")
    assert checkpoint_of(stage.run).progress.samples_seen == 8


def test_an_origin_that_the_manifest_does_not_name_is_said(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(stage.latents / NAME, lambda raw: raw["origins"].pop("autoencoder"))
    stage.train("train.samples=8")
    assert "does not say where its autoencoder was" in capsys.readouterr().out


def _cut_checkpoint(stage: Stage) -> None:
    (file,) = stage.autoencoder.glob("checkpoints/*/ema-*.safetensors")
    flip_byte(file)


def _broken_weights(stage: Stage) -> None:
    (stage.bert / "config.json").write_text("{")
    (stage.bert / "model.safetensors").unlink()
    (stage.bert / "model.safetensors.index.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (_cut_checkpoint, "autoencoder"),
        (_broken_weights, "text_encoder"),
        (lambda stage: (stage.images / NAME).write_text("{"), "images"),
    ],
    ids=["autoencoder", "text encoder", "images"],
)
def test_an_origin_that_is_there_and_damaged_is_refused(
    stage: Stage, damage: Change, name: str
) -> None:
    """Only what is gone cannot be compared."""
    damage(stage)
    with pytest.raises(UserError, match=f"cached with {name} at .* cannot be read"):
        stage.train()
    assert not stage.run.exists()


def test_training_takes_a_stale_cache_if_told_to(stage: Stage) -> None:
    one_image(stage)
    bert_vocabulary(stage)
    stage.train("train.samples=8", "data.check_origins=false")
    assert checkpoint_of(stage.run).progress.samples_seen == 8


def test_caches_beside_each_other_do_not_meet(stage: Stage) -> None:
    shutil.rmtree(stage.latents)
    makes = [(), ("encoding.dtype=float32",), ("text_encoder.max_length=8",)]
    made = [stage.cache("beside=true", *more) for more in makes]
    places = sorted(stage.latents.iterdir())
    assert len(places) == 3
    assert {place.name for place in places} == {one.identity[:16] for one in made}
    before = files_of(stage.latents)
    for more in makes:
        stage.cache("beside=true", "data.threads=1", *more)
    assert files_of(stage.latents) == before
