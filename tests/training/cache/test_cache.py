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
from tests.helpers.caches import run_cache, train_small
from tests.helpers.datasets import files_of
from training import encoders
from training.autoencode import load_trained_autoencoder
from training.feed import load_empty
from training.models.autoencoder import KLAutoencoder
from training.models.text import load_text_encoder

TEXT_ENCODER = compose_config("cache", ["data.url=x", "out=x", "autoencoder.url=x"]).text_encoder


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
    np.testing.assert_allclose(load_empty(latents).text[0], empty, rtol=2e-3, atol=2e-3)


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


def test_an_interrupted_cache_goes_on_and_ends_the_same(
    images: Path, autoencoder: Path, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "latents"
    shutil.copytree(cache, out)
    (out / "manifest.json").unlink()
    entries = sorted((out / "index").glob("*.json"))
    entries[1].unlink()
    kept = sorted((out / "shards").iterdir())[0]
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
        run_cache(images, autoencoder, cache, "encoding.dtype=float32")


def test_a_setting_that_does_not_matter_changes_nothing(
    images: Path, autoencoder: Path, cache: Path
) -> None:
    before = files_of(cache)
    run_cache(images, autoencoder, cache, "data.threads=1", "micro_batch_size=3")
    assert files_of(cache) == before


@pytest.mark.parametrize(
    ("bias", "dtype", "remedy"),
    [(1e6, "float16", "dtype=float32"), (float("nan"), "float32", "weights")],
)
def test_numbers_that_cannot_be_stored_are_found_here(
    images: Path,
    autoencoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bias: float,
    dtype: str,
    remedy: str,
) -> None:
    load = encoders.load_trained_autoencoder

    def broken(url: str, setting: str) -> tuple[KLAutoencoder, str]:
        model, fingerprint = load(url, setting)
        with torch.no_grad():
            model.quant_conv.bias.fill_(bias)
        return model, fingerprint

    monkeypatch.setattr(encoders, "load_trained_autoencoder", broken)
    key = open_dataset(str(images), "images").read(0, 0).key
    with pytest.raises(RunError, match=f"{key}.*{remedy}"):
        run_cache(images, autoencoder, tmp_path / "out", f"encoding.dtype={dtype}")
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_cut_captions_are_counted(images: Path, autoencoder: Path, tmp_path: Path) -> None:
    run_cache(images, autoencoder, tmp_path / "short", "text_encoder.max_length=3")
    latents = open_dataset(str(tmp_path / "short"), "latents")
    assert latents.manifest.text is not None
    assert latents.manifest.text.max_length == 3
    lengths = [len(load_array(latents.read(0, row).members[TEXT])) for row in range(8)]
    assert max(lengths) == 3
    assert '"truncated": 0' not in (tmp_path / "short/summary.json").read_text()
