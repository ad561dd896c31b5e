"""The validation loss is what a plain computation gives, and measuring it changes nothing."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conf.compose import compose_config
from conf.errors import UserError
from conf.groups import UNetConfig
from conf.schema import TrainCommand
from data.arrays import load_array
from data.corpus import Corpus
from data.sample import MOMENTS, TEXT
from data.shard import commit_dataset
from data.storage import open_prefix
from data.stream import open_dataset
from tests.helpers.latents import (
    CHANNELS,
    SQUARE,
    adam_moments,
    assert_equal,
    checkpoint_of,
    train_small,
    write_latents,
)
from training import validate
from training.diffuse import build_unet
from training.diffusion.schedule import build_schedule
from training.engine.strategy import Engine
from training.meaning import meaning_of
from training.random import Purpose, generator
from training.run import read_run
from training.tracking.files import read_metrics
from training.tracking.stall import Stall
from training.validate import UNIT_OF_SEVERAL_SIZES, bin_means, bin_sums, pieces

SIZES = (SQUARE, (48, 80))
BINS, SEED = 3, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets to train on and to hold out, and a training with validation and one without."""
    root = tmp_path_factory.mktemp("validation")
    write_latents(root / "latents", buckets=SIZES)
    write_latents(root / "held_out", (9, 10), seed=1, buckets=SIZES)
    validation = (
        f"validation.url={root / 'held_out'}",
        "validation.every_samples=8",
        f"validation.bins={BINS}",
        f"validation.seed={SEED}",
    )
    train_small(root / "latents", root / "with", "tracking.log_every_samples=8", *validation)
    train_small(root / "latents", root / "without", "tracking.log_every_samples=8")
    return root


def lines_of(run: Path) -> list[dict[str, Any]]:
    return read_metrics(open_prefix(str(run), "out"))


def test_training_is_the_same_with_validation_bit_for_bit(folder: Path) -> None:
    one, two = (checkpoint_of(folder / name) for name in ("with", "without"))
    assert_equal(one.weights(), two.weights())
    assert_equal(one.averages(), two.averages())
    assert_equal(adam_moments(one), adam_moments(two))
    losses = [[x["loss"] for x in lines_of(folder / n) if "loss" in x] for n in ("with", "without")]
    assert losses[0] == losses[1]


def plain_losses(folder: Path, run: Path, samples: int) -> tuple[list[float], list[float]]:
    """Loss and time of every place, one by one, from the run's averages and what is stored."""
    data = open_dataset(str(folder / "held_out"), "latents")
    corpus = Corpus([data], None, SEED, 16, UNIT_OF_SEVERAL_SIZES)
    settings = read_run(open_prefix(str(run), "out"), "train")
    unet = build_unet(UNetConfig(**settings["unet"]), meaning_of(data))
    unet.load_state_dict(checkpoint_of(run).averages())
    unet.eval()
    config = compose_config("train", [f"data.url={folder}", f"out={run}", "train.samples=8"])
    assert isinstance(config, TrainCommand)
    schedule = build_schedule(config.diffusion)
    losses, times = [], []
    for place in range(samples):
        where = corpus.locate(range(place, place + 1))[0]
        members = data.read(where.shard, where.row).members
        moments, text = (load_array(members[name]).astype(np.float32) for name in (MOMENTS, TEXT))
        mean, log_variance = moments[:CHANNELS], moments[CHANNELS:]
        posterior, noise = (
            generator(SEED, place, Purpose.evaluation, draw).standard_normal(mean.shape, np.float32)
            for draw in (1, 2)
        )
        latents = mean + np.exp(log_variance / 2) * posterior
        time = (place + generator(SEED, place, Purpose.evaluation).random()) / samples
        step = int(time * 1000)
        alpha, sigma = float(schedule.alphas[step]), float(schedule.sigmas[step])
        with torch.no_grad():
            told = unet(
                torch.from_numpy(alpha * latents + sigma * noise)[None],
                torch.tensor([step]),
                torch.from_numpy(text)[None],
                torch.ones(1, len(text), dtype=torch.bool),
            )
        losses.append(float(np.square(told[0].numpy() - noise).mean()))
        times.append(time)
    return losses, times


def test_the_value_is_that_of_a_plain_computation(folder: Path) -> None:
    samples = 19  # all that there are, fewer than validation.samples
    losses, times = plain_losses(folder, folder / "with", samples)
    line = [line for line in lines_of(folder / "with") if "val_loss" in line][-1]
    assert line["samples_seen"] == 24
    assert line["val_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    for i in range(BINS):
        inside = [loss for loss, time in zip(losses, times, strict=True) if int(time * BINS) == i]
        assert len(inside) in (6, 7)
        assert line[f"val_loss_bin_{i}"] == pytest.approx(np.mean(inside), rel=1e-5)
    assert set(line) == {"samples_seen", "val_loss", *(f"val_loss_bin_{i}" for i in range(BINS))}


def test_it_is_measured_when_it_is_due_and_moves_with_the_weights(folder: Path) -> None:
    found = [line for line in lines_of(folder / "with") if "val_loss" in line]
    assert [line["samples_seen"] for line in found] == [8, 16, 24]
    assert len({line["val_loss"] for line in found}) == 3


def test_metrics_say_what_is_used_and_what_is_left(folder: Path) -> None:
    trained = [line for line in lines_of(folder / "without") if "loss" in line]
    for line in trained:
        assert 0 < line["mfu"] < 10  # of a peak that was measured on a busy machine
        assert {"lr", "grad_norm", "waiting_share", "peak_memory"} <= set(line)
    assert [line["seconds_left"] > 0 for line in trained] == [True, True, False]
    shares = [line["mfu"] / line["images_per_second"] for line in trained]
    assert shares == pytest.approx([shares[0]] * 3)


@pytest.mark.parametrize(("samples", "unit", "most"), [(70, 32, 12), (5, 8, 8), (64, 32, 64)])
def test_pieces_hold_every_place_once_and_cross_no_unit(samples: int, unit: int, most: int) -> None:
    found = pieces(samples, unit, most)
    assert [place for piece in found for place in piece] == [*range(samples)]
    assert all(len(piece) <= most for piece in found)
    assert all(piece.start // unit == (piece.stop - 1) // unit for piece in found)


def test_bins_are_equal_parts_and_one_without_samples_has_no_value() -> None:
    times = torch.tensor([0.0, 0.24, 0.25, 0.99], dtype=torch.float64)
    sums = bin_sums(torch.tensor([1.0, 3.0, 5.0, 7.0]), times, 4)
    assert bin_means(sums) == {
        "val_loss": 4.0,
        "val_loss_bin_0": 2.0,
        "val_loss_bin_1": 5.0,
        "val_loss_bin_3": 7.0,
    }


def refused(folder: Path, url: Path, message: str) -> None:
    out = folder / "refused"
    with pytest.raises(UserError, match=message):
        train_small(folder / "latents", out, f"validation.url={url}")
    assert not out.exists()


def test_a_dataset_that_does_not_go_with_what_is_trained_on_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    write_latents(tmp_path / "sizes", (4,), seed=2, buckets=((80, 80),))
    refused(folder, tmp_path / "sizes", r"validation\.url=.*images of 80x80 pixels")
    write_latents(tmp_path / "again", buckets=SIZES)
    refused(folder, tmp_path / "again", r"validation\.url=.*is trained on")
    write_latents(tmp_path / "empty", (0,), seed=3, buckets=SIZES)
    refused(folder, tmp_path / "empty", r"validation\.url=.*has no samples")
    refused(folder, tmp_path / "nothing", r"validation\.url=")
    other = tmp_path / "other"
    manifest = write_latents(other, (4,), seed=4, buckets=SIZES)
    (other / "manifest.json").unlink()
    assert manifest.latents is not None
    changed = replace(manifest, latents=replace(manifest.latents, autoencoder="other"))
    commit_dataset(open_prefix(str(other), "out"), changed)
    refused(folder, other, r"validation\.url=.*latents of another autoencoder")


def test_validation_is_no_part_of_what_a_run_is(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "with", tmp_path / "run")
    train_small(folder / "latents", tmp_path / "run", "train.samples=32")  # goes on without it
    assert checkpoint_of(tmp_path / "run").progress.samples_seen == 32


def test_prompts_need_to_know_what_made_the_latents(folder: Path) -> None:
    with pytest.raises(UserError, match=r"validation\.prompts: needs the autoencoder"):
        train_small(folder / "latents", folder / "refused", "validation.prompts=[a]")
    assert not (folder / "refused").exists()


def test_a_look_tells_that_it_gets_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does a first step, which may compile for minutes, by a stack that moves."""
    signs: list[Any] = []
    sign: list[Callable[[], Any]] = []
    losses, update = validate.held_out_losses, Engine.update

    class Noted(Stall):
        def __init__(self, seconds: float, beats: Callable[[], Any], tell: Any) -> None:
            sign.append(beats)
            super().__init__(seconds, beats, tell)

    def noted(*given: Any) -> Any:
        signs.append(sign[0]())
        return losses(*given)

    in_steps: list[tuple[Any, Any]] = []

    def compiling(engine: Engine, *given: Any) -> Any:
        before = sign[0]()
        in_steps.append((before, sign[0]()))
        return update(engine, *given)

    monkeypatch.setattr(validate, "held_out_losses", noted)
    monkeypatch.setattr("training.loop.Stall", Noted)
    monkeypatch.setattr(Engine, "update", compiling)
    settings = ("train.samples=16", f"validation.url={folder / 'held_out'}")
    train_small(folder / "latents", tmp_path, *settings)
    assert len(signs) == len(set(signs)) > 2
    assert [one == other for one, other in in_steps] == [False, True]


def test_a_loss_that_is_not_finite_is_none(folder: Path, tmp_path: Path) -> None:
    """No best, then, and no word in a file that is no JSON."""
    write_latents(tmp_path / "held_out", (8,), seed=1, buckets=SIZES, nan_in="0-003")
    run = tmp_path / "run"
    settings = ("train.samples=8", f"validation.url={tmp_path / 'held_out'}")
    train_small(folder / "latents", run, *settings)
    (commit,) = run.glob("checkpoints/*/commit.json")
    texts = [commit.read_text(), *(run / "metrics.jsonl").read_text().splitlines()]
    told = [json.loads(text, parse_constant=pytest.fail) for text in texts]
    assert [one["val_loss"] for one in told if "val_loss" in one] == [None, None]
    assert checkpoint_of(run).val_loss is None
