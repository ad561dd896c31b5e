"""`ldm verify audit=N` finds what was wrong when it was pinned, and what only looks consistent."""

import gc
import json
import math
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.compose import compose_config
from data.addressed import create_shard
from data.arrays import dump_array, load_array
from data.image import decode_image
from data.manifest import Manifest, sha256
from data.sample import MOMENTS, POOLED, TEXT, RawSample
from data.shard import commit_dataset, finished_shard, finished_shards
from data.spec import EMPTY_POOLED, LatentSpec
from data.storage import open_prefix
from data.stream import open_dataset
from data.verify.sample import drawn_samples
from launch.verify import verify
from tests.helpers.autoencoders import kl
from tests.helpers.cache_stage import SHARDS, Stage, build_stage, edit_json
from tests.helpers.caches import train_small
from tests.helpers.raw_images import write_raw
from training.audit.again import difference
from training.audit.command import SHOWN, Pictures
from training.cache.statistics import merged

TOTAL = sum(SHARDS)
TWO_CAPTIONS = "encoding.captions=[one,two]"
POOLING = "text_encoder.pooled=pooled"


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forged")
    write_raw(folder / "images", (8,))
    return train_small(folder / "images", folder / "autoencoder", seed=0)


@pytest.fixture
def stage(autoencoder: Path, tmp_path: Path) -> Stage:
    stage = build_stage(tmp_path, autoencoder)
    stage.write_images(change=lambda number: {"json": _two_captions(number)})
    return stage


def _two_captions(number: int) -> bytes:
    return json.dumps({"one": f"red cat {number}", "two": f"a hat {number}"}).encode()


def run_audit(stage: Stage, *more: str, samples: int = 60) -> int:
    settings = [f"data.url={stage.latents}", f"audit={samples}", *more]
    return verify(compose_config("verify", settings))


def forge_manifest(stage: Stage, change: Callable[[Manifest], Manifest]) -> None:
    """A manifest that says something else, pinned as whoever made it wrong would have."""
    manifest = open_dataset(str(stage.latents), "latents").manifest
    (stage.latents / "manifest.json").unlink()
    commit_dataset(open_prefix(str(stage.latents), "out"), change(manifest))


def forge_latents(stage: Stage, **values: Any) -> None:
    forge_manifest(stage, lambda m: replace(m, latents=replace(_spec(m), **values)))


def forge_sample(
    stage: Stage, shard: int, row: int, change: Callable[[RawSample], RawSample]
) -> None:
    """One sample of another content; the record of its shard's statistics stays."""
    data = open_dataset(str(stage.latents), "latents")
    out = open_prefix(str(stage.latents), "out")
    first = data.manifest.shards[shard]
    name = first.name.rpartition("-")[0]
    entry = finished_shard(out, name)
    assert entry is not None
    samples = [data.read(shard, row) for row in range(first.samples)]
    samples[row] = change(samples[row])
    (stage.latents / f"index/{name}.json").unlink()
    made = create_shard(out, name, samples, data.manifest.members, 1, **entry.extra)
    shards = list(data.manifest.shards)
    shards[shard] = made.shard
    forge_manifest(stage, lambda manifest: replace(manifest, shards=tuple(shards)))


def with_array(name: str, change: Callable[[Any], Any]) -> Callable[[RawSample], RawSample]:
    """Another array in a member of a sample."""

    def changed(sample: RawSample) -> RawSample:
        content = dump_array(change(load_array(sample.members[name])))
        return replace(sample, members={**sample.members, name: content})

    return changed


def with_nan(array: Any) -> Any:
    array.flat[0] = math.nan
    return array


def _spec(manifest: Manifest) -> LatentSpec:
    assert manifest.latents is not None
    return manifest.latents


@pytest.mark.parametrize("layout", [(TWO_CAPTIONS, POOLING), (POOLING, "encoding.dtype=bfloat16")])
def test_a_right_cache_passes(stage: Stage, layout: tuple[str, ...]) -> None:
    stage.cache(*layout)
    assert run_audit(stage) == 0


@pytest.mark.parametrize("name", [TEXT, "text1.npy", POOLED, "pooled1.npy", MOMENTS])
def test_numbers_that_are_none_are_found_in_any_member(
    stage: Stage, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.cache(TWO_CAPTIONS, POOLING)
    forge_sample(stage, 0, 0, with_array(name, with_nan))
    # Of the bytes a single sample is checked, which need not be this one.
    assert run_audit(stage, "samples=1") == 1
    what = "latents differ" if name == MOMENTS else "text differs"
    assert f"s0000: its {what} inf times" in capsys.readouterr().out


@pytest.mark.parametrize("at", [0, 1])
def test_no_comparison_lets_a_nan_pass(at: int) -> None:
    right, wrong = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    wrong[at, 1] = math.nan
    assert difference(right, right, "float32") == 0
    for one, two in ((right, wrong), (wrong, right), (wrong, wrong)):
        assert difference(one, two, "float32") == math.inf


@pytest.mark.parametrize("name", [POOLED, "pooled1.npy"])
def test_another_vector_of_a_caption_is_found(
    stage: Stage, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.cache(TWO_CAPTIONS, POOLING)
    forge_sample(stage, 0, 0, with_array(name, lambda vector: vector + np.float16(0.5)))
    assert run_audit(stage) == 1
    assert "s0000: its text differs" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["empty.text.npy", EMPTY_POOLED, "empty.tokens.npy"])
def test_another_empty_caption_is_found(
    stage: Stage, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = name == "empty.tokens.npy"
    stage.cache("encoding.text=ids" if ids else POOLING)
    file = stage.latents / name
    array = load_array(file.read_bytes())
    array[..., 0] += 1
    file.write_bytes(dump_array(array))
    pin = "empty_pooled_sha256" if name == EMPTY_POOLED else "empty_sha256"
    pinned = {pin: sha256(file.read_bytes())}
    forge_manifest(stage, lambda m: replace(m, text=replace(m.text, **pinned)))  # type: ignore[type-var]
    assert run_audit(stage, samples=1) == 1
    assert "the empty caption differs" in capsys.readouterr().out


def test_latents_of_samples_that_are_not_drawn_are_summed_again(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.cache()
    ((shard, rows),) = drawn_samples(SHARDS, 1, 0).items()
    other = (int(rows[0]) + 1) % SHARDS[shard]
    forge_sample(stage, shard, other, with_array(MOMENTS, lambda moments: moments[:, ::-1] * 2))
    assert run_audit(stage, samples=1) == 1
    said = capsys.readouterr().out
    assert "its latents do not have the statistics that its record says" in said
    assert "its latents differ" not in said


def test_statistics_that_are_forged_everywhere_are_found_in_the_shard(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """Manifest and records agree with each other, and not with what is stored."""
    manifest = stage.cache()
    names = [shard.name.rpartition("-")[0] for shard in manifest.shards]

    def change(raw: Any) -> None:
        sums = raw["extra"]["statistics"]
        sums["squares"] = [4 * value for value in sums["squares"]]

    for name in names:
        edit_json(stage.latents / f"index/{name}.json", change)
    entries = finished_shards(open_prefix(str(stage.latents), "out"), names)
    now = merged([entries[name].extra["statistics"] for name in names])
    forge_latents(stage, **now, shift=now["mean"], scale=tuple((1 / np.array(now["std"])).tolist()))
    assert run_audit(stage) == 1
    said = capsys.readouterr().out
    assert "its latents do not have the statistics" in said and "of the manifest" not in said


@pytest.mark.parametrize("name", ["shift", "scale"])
@pytest.mark.parametrize("kind", ["measured", "published"])
def test_another_scale_is_found(
    stage: Stage, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = stage.folder / "vae"
    kl(scaling_factor=0.3).save_pretrained(weights)
    more = ("autoencoder=pretrained", f"autoencoder.path={weights}", f"encoding.scale={kind}")
    shutil.rmtree(stage.autoencoder)
    _cache_with(stage, *more)
    assert run_audit(stage) == 0
    spec = _spec(open_dataset(str(stage.latents), "latents").manifest)
    forge_latents(stage, **{name: tuple(value + 0.01 for value in getattr(spec, name))})
    assert run_audit(stage) == 1
    assert f"{name} of the manifest is not {kind}" in capsys.readouterr().out


def _cache_with(stage: Stage, *more: str) -> None:
    """`ldm cache` with another autoencoder than the stage's."""
    from training.cache import make_cache

    settings = [f"data.url={stage.images}", f"out={stage.latents}", "micro_batch_size=8"]
    text = [f"text_encoder.path={stage.bert}", "text_encoder.max_length=16"]
    make_cache(compose_config("cache", [*settings, *text, *more]))


def test_measured_latents_that_say_published_are_found(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.cache()
    forge_latents(stage, scaling="published")
    assert run_audit(stage) == 1
    assert "its autoencoder publishes none" in capsys.readouterr().out


def test_every_rank_audits_its_own_samples_and_writes_its_own_files(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.cache()
    monkeypatch.setenv("WORLD_SIZE", "3")
    keys: list[str] = []
    check = stage.folder / "check"
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert run_audit(stage, f"out={check}") == 0
        part = json.loads((check / f"audit-{rank}-of-3.json").read_text())["samples"]
        assert decode_image((check / f"audit-{rank}-of-3.png").read_bytes()).ndim == 3
        assert len(part) == TOTAL // 3
        keys += [one["key"] for one in part]
    assert sorted(keys) == [f"s{number:04d}" for number in range(TOTAL)]
    assert {file.name for file in check.glob("audit*")} == {
        f"audit-{rank}-of-3.{kind}" for rank in range(3) for kind in ("json", "png")
    }


def test_the_account_is_json_for_numbers_that_are_none_too(stage: Stage) -> None:
    stage.cache()
    forge_sample(stage, 0, 0, with_array(TEXT, with_nan))
    check = stage.folder / "check"
    assert run_audit(stage, f"out={check}") == 1

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    content = json.loads((check / "audit.json").read_text(), parse_constant=refuse)
    assert content["samples"][0]["text"] is None


def test_no_more_pictures_are_kept_than_are_shown() -> None:
    pictures, alive = Pictures(), []
    for _ in range(2 * SHOWN):
        pair = (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8))
        alive.append(weakref.ref(pair[0]))
        pictures.add(pair)
    del pair
    gc.collect()
    assert sum(one() is not None for one in alive) == SHOWN
    pictures.pairs = pictures.pairs[:3]
    assert decode_image(pictures.png()).shape == (2 * 6 + 2, 3 * 6 + 2, 3)
