"""Training on images gives the batches and the loss of training on their cache."""

from pathlib import Path

import numpy as np
import pytest
import torch

from conf.compose import compose_config
from conf.errors import RunError, UserError
from conf.schema import TrainCommand
from data.corpus import open_corpus
from data.sample import LatentBatch
from data.storage import open_prefix
from launch.findings import collect
from tests.helpers.caches import run_cache, train_small
from tests.helpers.datasets import run_shard
from tests.helpers.latents import SMALL_UNET, checkpoint_of
from tests.helpers.latents import train_small as train_denoiser_small
from tests.helpers.tiny_bert import tiny_bert
from training import online
from training.diffuse import load_trained
from training.feed import Feed, cached_feed
from training.models.autoencoder import KLAutoencoder
from training.online import online_feed
from training.step import Condition, stored_condition

# What a cache can be told that changes what a place is given.
LAYOUTS = {
    "plain": (),
    "flips and crops": ("encoding.flip=true", "encoding.crops=1", "encoding.crop_zoom=1.25"),
    "means": ("encoding.store=mean", "encoding.dtype=bfloat16"),
    "several captions": ("encoding.captions=[caption,group]",),
    "padded": ("text_encoder.padding=true", "text_encoder.max_length=8"),
    "ids": ("encoding.text=ids",),
    "ids in bf16": ("encoding.text=ids", "encoding.dtype=bfloat16", "encoding.precision=bf16"),
    "pooled": ("text_encoder.path=BERT", "text_encoder.pooled=pooled"),
    "pooled ids": ("text_encoder.path=BERT", "text_encoder.pooled=pooled", "encoding.text=ids"),
    "joined": ("text_encoder.path=BERT", "text_encoder.joined=[{path: BERT}]"),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("online") / "images"
    run_shard(out, "source.split=held_out", "source.held_out_share=0.01", "shard_samples=8")
    return out


@pytest.fixture(scope="module")
def autoencoder(images: Path) -> Path:
    return train_small(images, images.parent / "autoencoder", seed=0)


def train_config(url: Path, out: Path, *more: str) -> TrainCommand:
    settings = [f"data.url={url}", f"out={out}", "batch_size=8", "train.samples=24", *more]
    config = compose_config("train", [*SMALL_UNET, *settings])
    assert isinstance(config, TrainCommand)
    return config


def encoders(autoencoder: Path) -> list[str]:
    return ["autoencoder=trained", f"autoencoder.url={autoencoder}", "text_encoder=minilm"]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_batch_is_that_of_the_cache(
    images: Path, autoencoder: Path, tmp_path: Path, layout: tuple[str, ...]
) -> None:
    bert = tiny_bert(tmp_path / "bert")
    layout = tuple(setting.replace("BERT", str(bert)) for setting in layout)
    run_cache(images, autoencoder, tmp_path / "latents", *layout)
    cached = train_config(tmp_path / "latents", tmp_path / "a")
    online = train_config(images, tmp_path / "b", *encoders(autoencoder), *layout)
    from_cache = open_corpus(cached.data, "latents", 8)
    from_images = open_corpus(online.data, "images", 8)
    one, two = cached_feed(cached, from_cache), online_feed(online, from_images)
    assert two.meaning.latents == one.meaning.latents
    assert torch.equal(two.empty.text, one.empty.text)
    for start in range(0, 120, 8):
        places = range(start, start + 8)
        ours, theirs = _batch(one, from_cache, places), _batch(two, from_images, places)
        np.testing.assert_array_equal(ours[0].moments, theirs[0].moments)
        for name, tensor in ours[1]._asdict().items():
            other = getattr(theirs[1], name)
            assert (tensor is None) == (other is None), name
            assert tensor is None or torch.equal(tensor, other), name


def _batch(feed: Feed, corpus: object, places: range) -> tuple[LatentBatch, Condition]:
    batch = feed.encode(feed.collate(corpus, places))  # type: ignore[arg-type]
    embed = feed.embed or (lambda batch: stored_condition(batch, torch.device("cpu")))
    return batch, embed(batch)


def test_the_weights_are_those_of_training_on_the_cache(
    images: Path, autoencoder: Path, tmp_path: Path
) -> None:
    run_cache(images, autoencoder, tmp_path / "latents")
    train_denoiser_small(tmp_path / "latents", tmp_path / "cached")
    train_denoiser_small(images, tmp_path / "online", *encoders(autoencoder))
    one, two = (checkpoint_of(tmp_path / run).weights() for run in ("cached", "online"))
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    model = load_trained(str(tmp_path / "online"))
    assert model.spec == load_trained(str(tmp_path / "cached")).spec


def test_a_run_goes_on_with_the_scale_that_it_began_with(
    images: Path, autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = (*encoders(autoencoder), "data.statistics_samples=10")
    train_denoiser_small(images, tmp_path / "run", *few, "train.samples=8")
    assert "measured on the first 10 of 55" in capsys.readouterr().out
    train_denoiser_small(images, tmp_path / "run", *few, "train.samples=16")
    assert "measured" not in capsys.readouterr().out


def test_images_without_encoders_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="need an autoencoder and a text encoder"):
        train_denoiser_small(images, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_autoencoder_is_another_run(
    images: Path, autoencoder: Path, tmp_path: Path
) -> None:
    train_denoiser_small(images, tmp_path / "run", *encoders(autoencoder), "train.samples=8")
    other = train_small(images, tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="holds other work"):
        train_denoiser_small(images, tmp_path / "run", *encoders(other))


def test_a_scale_that_nobody_has_published_is_refused(
    images: Path, autoencoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"encoding\.scale=published: is not known"):
        train_denoiser_small(
            images, tmp_path / "run", *encoders(autoencoder), "encoding.scale=published"
        )


def test_numbers_that_are_not_finite_are_named_while_the_scale_is_measured(
    images: Path, autoencoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = KLAutoencoder.encode
    monkeypatch.setattr(KLAutoencoder, "encode", lambda *given: encode(*given) * float("nan"))
    with pytest.raises(RunError, match="moments of an image of shard 0 are not finite"):
        train_denoiser_small(images, tmp_path / "run", *encoders(autoencoder))


def test_another_rank_takes_the_numbers_of_the_first(
    images: Path, autoencoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks that measured for themselves would differ in their last bits, and refuse each other."""
    config = train_config(images, tmp_path / "run", *encoders(autoencoder))
    corpus = open_corpus(config.data, "images", 8)
    monkeypatch.setattr(online, "LONGEST_MEASURING", 0.0)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RunError, match="rank 0 has not measured"):
        online_feed(config, corpus)
    monkeypatch.setenv("RANK", "0")
    first = online_feed(config, corpus)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(online, "_statistics", lambda *_: pytest.fail("it measured again"))
    assert online_feed(config, corpus).meaning.latents == first.meaning.latents


def test_a_place_of_others_is_left_alone(images: Path, autoencoder: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs.txt").write_text("theirs")
    with pytest.raises(UserError, match="is not empty"):
        train_denoiser_small(images, tmp_path, *encoders(autoencoder))
    assert [file.name for file in tmp_path.iterdir()] == ["theirs.txt"]


def test_a_run_on_images_has_a_report(images: Path, autoencoder: Path, tmp_path: Path) -> None:
    train_denoiser_small(images, tmp_path / "run", *encoders(autoencoder), "train.samples=8")
    findings = collect(open_prefix(str(tmp_path / "run"), "run"))
    assert findings.data.kind == "images"
    assert findings.meaning.latents.autoencoder
    assert [stage[0] for stage in findings.stages] == ["autoencoder", "shard", "train"]


def test_ids_are_embedded_by_an_encoder_that_has_moved(
    images: Path, autoencoder: Path, tmp_path: Path
) -> None:
    bert = tiny_bert(tmp_path / "bert")
    run_cache(
        images, autoencoder, tmp_path / "latents", f"text_encoder.path={bert}", "encoding.text=ids"
    )
    bert.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"point at it with text_encoder=\.\.\."):
        train_denoiser_small(tmp_path / "latents", tmp_path / "run")
    moved = ("text_encoder=minilm", f"text_encoder.path={tmp_path / 'moved'}")
    train_denoiser_small(tmp_path / "latents", tmp_path / "run", *moved, "train.samples=8")
