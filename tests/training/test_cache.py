import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from conf.compose import compose_config
from conf.errors import RunError, UserError
from data.arrays import load_array
from data.collate import image_of
from data.sample import CAPTION, MOMENTS, TEXT
from data.stream import open_dataset
from tests.helpers.datasets import files_of, run_shard
from training.autoencode import load_trained_autoencoder, train_autoencoder
from training.cache import ChannelStatistics, Encoder, make_cache
from training.diffuse import load_empty_text
from training.models.text import load_text_encoder

TEXT_ENCODER = compose_config("cache", ["data.url=x", "out=x", "autoencoder.url=x"]).text_encoder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few dozen emoji of 16 pixels in shards of eight."""
    out = tmp_path_factory.mktemp("cache") / "images"
    run_shard(out, "source.split=held_out", "source.held_out_share=0.01", "shard_samples=8")
    return out


def train_small(images: Path, out: Path, seed: int) -> Path:
    train_autoencoder(
        compose_config(
            "autoencoder",
            [
                "autoencoder=kl_emoji",
                "autoencoder.channels=8",
                f"data.url={images}",
                f"out={out}",
                "train.samples=8",
                f"train.seed={seed}",
                "batch_size=8",
                "tracking.kind=off",
                "engine.precision=fp32",
            ],
        )
    )
    return out


@pytest.fixture(scope="module")
def autoencoder(images: Path) -> Path:
    """A run of `ldm autoencoder`, one step long."""
    return train_small(images, images.parent / "autoencoder", seed=0)


def run_cache(images: Path, autoencoder: Path, out: Path, *more: str) -> None:
    settings = [f"data.url={images}", f"autoencoder.url={autoencoder}", f"out={out}", *more]
    make_cache(compose_config("cache", settings))


@pytest.fixture(scope="module")
def cache(images: Path, autoencoder: Path) -> Path:
    """The latents of the images; not to be changed."""
    out = images.parent / "latents"
    run_cache(images, autoencoder, out)
    return out


def test_what_is_stored_is_what_the_encoders_say(
    images: Path, autoencoder: Path, cache: Path
) -> None:
    raw, latents = open_dataset(str(images), "images"), open_dataset(str(cache), "latents")
    model, fingerprint = load_trained_autoencoder(str(autoencoder), "autoencoder.url")
    text_encoder = load_text_encoder(TEXT_ENCODER)
    assert latents.manifest.latents is not None
    assert latents.manifest.latents.autoencoder == fingerprint
    assert latents.manifest.parent == raw.manifest.fingerprint
    for shard, row in ((0, 0), (1, 3), (2, 5)):
        source, stored = raw.read(shard, row), latents.read(shard, row)
        assert source.key == stored.key
        pixels = torch.from_numpy(image_of(source).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        moments = load_array(stored.members[MOMENTS])
        assert moments.dtype == np.float16
        np.testing.assert_allclose(moments, model.encode(pixels)[0], rtol=2e-3, atol=2e-3)
        alone = text_encoder.encode([source.members[CAPTION].decode()])
        text = load_array(stored.members[TEXT])
        assert text.shape == alone.embeddings[0].shape
        np.testing.assert_allclose(text, alone.embeddings[0], rtol=2e-3, atol=2e-3)
    empty = text_encoder.encode([""]).embeddings[0]
    np.testing.assert_allclose(load_empty_text(latents), empty, rtol=2e-3, atol=2e-3)


def test_final_latents_of_the_whole_set_are_standard(cache: Path) -> None:
    latents = open_dataset(str(cache), "latents")
    spec = latents.manifest.latents
    assert spec is not None
    moments = np.stack(
        [
            load_array(latents.read(number, row).members[MOMENTS]).astype(np.float64)
            for number, shard in enumerate(latents.manifest.shards)
            for row in range(shard.samples)
        ]
    )
    mean, log_variance = np.split(moments, 2, axis=1)
    final = (mean - np.array(spec.shift)[:, None, None]) * np.array(spec.scale)[:, None, None]
    added = np.exp(log_variance).mean((0, 2, 3)) * np.array(spec.scale) ** 2
    np.testing.assert_allclose(final.mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(final.var((0, 2, 3)) + added, 1, rtol=1e-6)


def test_statistics_by_shard_are_those_of_all() -> None:
    chance = np.random.default_rng(0)
    parts = [chance.standard_normal((n, 6, 4, 4)).astype(np.float16) for n in (3, 5, 1)]
    apart, together = [ChannelStatistics(3) for _ in parts], ChannelStatistics(3)
    for statistics, part in zip(apart, parts, strict=True):
        statistics.add(part)
    together.add(np.concatenate(parts))
    np.testing.assert_allclose(sum(s.total for s in apart), together.total)
    np.testing.assert_allclose(sum(s.squares for s in apart), together.squares)
    assert sum(s.count for s in apart) == together.count


def test_an_interrupted_cache_goes_on_and_ends_the_same(
    images: Path, autoencoder: Path, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "latents"
    shutil.copytree(cache, out)
    (out / "manifest.json").unlink()
    (out / "index/00001.json").unlink()
    kept = out / "shards/00000.tar"
    written = kept.stat().st_mtime_ns
    run_cache(images, autoencoder, out)
    assert kept.stat().st_mtime_ns == written
    whole, resumed = files_of(cache), files_of(out)
    del whole["summary.json"], resumed["summary.json"]  # which holds times
    assert resumed == whole


def test_another_autoencoder_into_the_same_place_is_refused_by_name(
    images: Path, cache: Path, tmp_path: Path
) -> None:
    other = train_small(images, tmp_path / "other", seed=1)
    before = files_of(cache)
    with pytest.raises(UserError, match="autoencoder"):
        run_cache(images, other, cache)
    assert files_of(cache) == before


def test_an_autoencoder_that_is_still_trained_is_refused(
    images: Path, autoencoder: Path, tmp_path: Path
) -> None:
    """Its weights would change under the cache."""
    unfinished = tmp_path / "unfinished"
    shutil.copytree(autoencoder, unfinished)
    config = unfinished / "config.yaml"
    config.write_text(config.read_text().replace("samples: 8", "samples: 16"))
    with pytest.raises(UserError, match="8 of 16 samples"):
        run_cache(images, unfinished, tmp_path / "latents")
    assert not (tmp_path / "latents").exists()


def test_another_dtype_into_the_same_place_is_refused_by_name(
    images: Path, autoencoder: Path, cache: Path
) -> None:
    with pytest.raises(UserError, match="dtype"):
        run_cache(images, autoencoder, cache, "dtype=float32")


def test_a_setting_that_does_not_matter_changes_nothing(
    images: Path, autoencoder: Path, cache: Path
) -> None:
    before = files_of(cache)
    run_cache(images, autoencoder, cache, "data.threads=1", "micro_batch_size=3")
    assert files_of(cache) == before


def test_numbers_that_float16_cannot_hold_are_found_here(autoencoder: Path) -> None:
    model, _ = load_trained_autoencoder(str(autoencoder), "autoencoder.url")
    encoder = Encoder(model, load_text_encoder(TEXT_ENCODER), "float16")
    with torch.no_grad():
        model.quant_conv.bias.fill_(1e6)
    with pytest.raises(RunError, match="float32"):
        encoder.moments(np.zeros((1, 16, 16, 3), np.uint8))


def test_cut_captions_are_counted(images: Path, autoencoder: Path, tmp_path: Path) -> None:
    run_cache(images, autoencoder, tmp_path / "short", "text_encoder.max_length=3")
    latents = open_dataset(str(tmp_path / "short"), "latents")
    assert latents.manifest.text is not None
    assert latents.manifest.text.max_length == 3
    lengths = [len(load_array(latents.read(0, row).members[TEXT])) for row in range(8)]
    assert max(lengths) == 3
    assert '"truncated": 0' not in (tmp_path / "short/summary.json").read_text()
