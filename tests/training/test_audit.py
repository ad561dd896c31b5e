"""`ldm verify audit=N` finds latents and texts that are not what their images and captions give."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conf.compose import compose_config
from conf.errors import UserError
from data.addressed import create_shard
from data.arrays import dump_array, load_array
from data.image import decode_image
from data.sample import MOMENTS, TEXT, RawSample
from data.shard import commit_dataset, finished_shard
from data.storage import open_prefix
from data.stream import open_dataset
from launch.verify import verify
from tests.helpers.caches import run_cache, train_small
from tests.helpers.datasets import run_shard


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audit") / "images"
    run_shard(out, "source.split=held_out", "source.held_out_share=0.01", "shard_samples=8")
    return out


@pytest.fixture(scope="module")
def autoencoder(images: Path) -> Path:
    return train_small(images, images.parent / "autoencoder", seed=0)


def run_audit(url: Path, *more: str, samples: int = 60) -> int:
    return verify(compose_config("verify", [f"data.url={url}", f"audit={samples}", *more]))


@pytest.mark.parametrize(
    "layout",
    [
        (),
        ("encoding.store=mean", "encoding.dtype=bfloat16", "encoding.flip=true"),
        ("encoding.dtype=float32", "encoding.text=ids", "encoding.crops=1"),
        ("deduplicate=true", "encoding.captions=[caption,group]"),
    ],
)
def test_a_right_cache_passes(
    images: Path,
    autoencoder: Path,
    tmp_path: Path,
    layout: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_cache(images, autoencoder, tmp_path / "latents", *layout)
    capsys.readouterr()
    assert run_audit(tmp_path / "latents", f"out={tmp_path / 'check'}") == 0
    said = capsys.readouterr().out
    assert "55 samples encoded again" in said and "PSNR" in said
    result = json.loads((tmp_path / "check/audit.json").read_text())
    assert len(result["samples"]) == 55 and not result["broken"]
    picture = decode_image((tmp_path / "check/audit.png").read_bytes())
    assert picture.shape[1] == 8 * 18 + 2  # eight columns of 16 pixels with borders


def _other_latents(sample: RawSample) -> RawSample:
    moments = load_array(sample.members[MOMENTS]).copy()
    return replace(sample, members={**sample.members, MOMENTS: dump_array(moments[:, ::-1])})


def _other_text(sample: RawSample) -> RawSample:
    text = load_array(sample.members[TEXT]) + np.float16(0.5)
    return replace(sample, members={**sample.members, TEXT: dump_array(text)})


def _other_key(sample: RawSample) -> RawSample:
    return replace(sample, key="nobody")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_latents, "latents differ"),
        (_other_text, "text differs"),
        (_other_key, "nobody: is not among the images"),
    ],
)
def test_a_sample_that_was_never_right_is_found(
    images: Path,
    autoencoder: Path,
    tmp_path: Path,
    change: Callable[[RawSample], RawSample],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every byte is pinned by the manifest, so checksums alone would not show it."""
    run_cache(images, autoencoder, tmp_path / "latents")
    _rewrite(tmp_path / "latents", tmp_path / "wrong", change)
    assert run_audit(tmp_path / "wrong") == 1
    assert words in capsys.readouterr().out


def _rewrite(url: Path, target: Path, change: Callable[[RawSample], RawSample]) -> None:
    """A dataset with one sample changed, as whoever made it wrong would have pinned it."""
    shutil.copytree(url, target)
    (target / "manifest.json").unlink()
    data, out = open_dataset(str(url), "latents"), open_prefix(str(target), "out")
    first = data.manifest.shards[0]
    name = first.name.rpartition("-")[0]
    extra = finished_shard(out, name)
    assert extra is not None
    (target / f"index/{name}.json").unlink()
    samples = [data.read(0, row) for row in range(first.samples)]
    samples[0] = change(samples[0])
    entry = create_shard(out, name, samples, data.manifest.members, 1, **extra.extra)
    shards = (entry.shard, *data.manifest.shards[1:])
    commit_dataset(out, replace(data.manifest, shards=shards))


def test_statistics_that_are_not_those_of_the_shards_are_found(
    images: Path, autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_cache(images, autoencoder, tmp_path / "latents")
    out = open_prefix(str(tmp_path / "latents"), "out")
    manifest = open_dataset(str(tmp_path / "latents"), "latents").manifest
    assert manifest.latents is not None
    mean = tuple(value + 0.1 for value in manifest.latents.mean)
    out.remove("manifest.json")
    commit_dataset(out, replace(manifest, latents=replace(manifest.latents, mean=mean)))
    assert run_audit(tmp_path / "latents", samples=1) == 1
    assert "mean of the manifest is not that of its shards" in capsys.readouterr().out


def test_another_autoencoder_at_the_same_place_is_found(
    images: Path, autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(autoencoder, tmp_path / "autoencoder")
    run_cache(images, moved, tmp_path / "latents")
    shutil.rmtree(moved)
    train_small(images, moved, seed=1)
    assert run_audit(tmp_path / "latents", samples=2) == 1
    assert "autoencoder: not what the latents were made from" in capsys.readouterr().out


def test_images_that_have_moved_can_be_pointed_at(
    images: Path, autoencoder: Path, tmp_path: Path
) -> None:
    here = shutil.copytree(images, tmp_path / "images")
    run_cache(here, autoencoder, tmp_path / "latents")
    shutil.move(here, tmp_path / "elsewhere")
    with pytest.raises(UserError, match="holds no dataset"):
        run_audit(tmp_path / "latents", samples=2)
    assert run_audit(tmp_path / "latents", f"images={tmp_path / 'elsewhere'}", samples=2) == 0


def test_a_dataset_of_images_cannot_be_audited(images: Path) -> None:
    with pytest.raises(UserError, match="latents are needed"):
        run_audit(images)
