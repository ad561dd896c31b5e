"""What is measured and shown on the way does not depend on the ranks or the engine."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch.distributed as dist

from conf.errors import Preempted
from data.image import decode_image
from data.storage import open_prefix
from tests.helpers.caches import run_cache, train_small
from tests.helpers.datasets import run_shard
from tests.helpers.engines import train_in_turn
from tests.helpers.latents import assert_equal, checkpoint_of
from tests.helpers.ranks import run_ranks
from training import grids, validate
from training.tracking.files import read_metrics

TRAINING = ("unet.dropout=0", "optimizer.lr=0.1", "optimizer.eps=1e-2", "train.samples=16")
WATCHED = (
    "validation.every_samples=8",
    "validation.samples=21",  # no multiple of what two ranks take in turn
    "validation.bins=4",
    "validation.prompts=[red apple,blue car,green tree]",  # nor is this
    "validation.grid_every_samples=16",
    "validation.sampler.steps=3",
)
KINDS = ("ddp", "zero2", "zero3")

Cases = Sequence[tuple[Path, Sequence[str]]]


def left_in_turn(latents: Path, runs: Cases, last: Cases) -> list[str]:
    """As `train_in_turn`, but rank 1 is told to stop by what looks first: `last` as they end."""

    def told(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            if dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return work(*given)

        return call

    said = []
    with (
        mock.patch.object(validate, "held_out_losses", told(validate.held_out_losses)),
        mock.patch.object(grids, "sample_images", told(grids.sample_images)),
    ):
        for run in runs:
            with pytest.raises(Preempted) as caught:
                train_in_turn(latents, [run])
            said.append(str(caught.value))
        train_in_turn(latents, last)
    return said


def train_and_leave(latents: Path, cases: Cases, left: Cases, last: Cases) -> list[str]:
    """For `run_ranks`: some runs to their ends, and some that leave what they look at."""
    train_in_turn(latents, cases)
    return left_in_turn(latents, left, last)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one rank, and of every engine on two, one of them also without being watched."""
    root = tmp_path_factory.mktemp("watched")
    split = ("source.split=held_out", "shard_samples=16")
    run_shard(root / "images", *split, "source.held_out_share=0.01")
    run_shard(root / "held_out_images", *split, "source.held_out_share=0.005")
    autoencoder = train_small(root / "images", root / "autoencoder", seed=0)
    for name, images in (("latents", "images"), ("held_out", "held_out_images")):
        run_cache(root / images, autoencoder, root / name)
    watched = (*TRAINING, *WATCHED, f"validation.url={root / 'held_out'}")
    cases: list[tuple[Path, tuple[str, ...]]] = []
    for kind in KINDS:
        cases.append((root / kind, (*watched, f"engine={kind}")))
    for kind in ("zero2", "zero3"):
        cases.append((root / f"{kind}_unwatched", (*TRAINING, f"engine={kind}")))
    only_grids = ("engine=zero3", "validation.url=null", "validation.grid_every_samples=8")
    left = [
        (root / "left_validation", (*watched, "engine=zero2", "micro_batch_size=2")),
        (root / "left_grid", (*TRAINING, *WATCHED, *only_grids)),
    ]
    last = [(root / "told_last", (*watched, "engine=zero2", "validation.every_samples=16"))]
    said = run_ranks(train_and_leave, 2, root / "latents", cases, left, last)
    stopped = [line.startswith("stopped after 8 samples") for rank in said for line in rank]
    assert stopped == [True] * 4
    encoders = ("autoencoder=trained", f"autoencoder.url={autoencoder}", "text_encoder=minilm")
    on_images = (f"data.url={root / 'images'}", f"validation.url={root / 'held_out_images'}")
    cases = [(root / "single", watched), (root / "images_run", (*watched, *encoders, *on_images))]
    run_ranks(train_in_turn, 1, root / "latents", cases)
    return root


def test_the_last_look_is_taken_though_a_rank_is_told_to_stop(runs: Path) -> None:
    """The run is over then, and nobody would take it again."""
    (line,) = validations(runs / "told_last")
    assert line["samples_seen"] == 16


def validations(run: Path) -> list[dict[str, Any]]:
    lines = read_metrics(open_prefix(str(run), "out"))
    return [line for line in lines if "val_loss" in line]


@pytest.mark.parametrize("kind", KINDS)
def test_the_value_is_that_of_one_rank(runs: Path, kind: str) -> None:
    wanted, found = validations(runs / "single"), validations(runs / kind)
    assert [line["samples_seen"] for line in wanted] == [8, 16]
    for one, two in zip(wanted, found, strict=True):
        assert one.keys() == two.keys()
        assert len(one) == 6
        assert two == pytest.approx(one, rel=1e-4)
    assert wanted[0]["val_loss"] != pytest.approx(wanted[1]["val_loss"], rel=1e-4)


def test_images_have_the_value_of_their_latents(runs: Path) -> None:
    wanted, found = validations(runs / "single"), validations(runs / "images_run")
    for one, two in zip(wanted, found, strict=True):
        assert two == pytest.approx(one, rel=1e-6)
    grids = [
        (runs / run / "samples/000000016.png").read_bytes() for run in ("single", "images_run")
    ]
    assert grids[0] == grids[1]


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_weights_and_averages_come_back_bit_for_bit(runs: Path, kind: str) -> None:
    one, two = checkpoint_of(runs / kind), checkpoint_of(runs / f"{kind}_unwatched")
    assert_equal(one.weights(), two.weights())
    assert_equal(one.averages(), two.averages())


@pytest.mark.parametrize("kind", KINDS)
def test_grids_are_those_of_one_rank(runs: Path, kind: str) -> None:
    grids = [
        {file.name: decode_image(file.read_bytes()) for file in (runs / run / "samples").iterdir()}
        for run in ("single", kind)
    ]
    assert [*grids[0]] == [*grids[1]] == ["000000016.png"]
    one, two = (grid["000000016.png"].astype(int) for grid in grids)
    assert one.shape == two.shape
    assert np.abs(one - two).max() <= 2
    assert one.shape == (20, 2 + 3 * 18, 3)  # three images of 16 pixels, and white around them
    cells = [one[2:18, 2 + 18 * i : 18 + 18 * i] for i in range(3)]
    for cell in cells:
        assert cell.std() > 5
    assert np.abs(cells[0] - cells[1]).mean() > 5  # each from a noise of its own


@pytest.mark.parametrize("what", ["validation", "grid"])
def test_a_look_is_left_by_all_ranks_when_one_is_told_to_stop(runs: Path, what: str) -> None:
    """Rank 1 was told so in its first part."""
    run = runs / f"left_{what}"
    assert checkpoint_of(run).progress.samples_seen == 8
    assert validations(run) == []
    assert not (run / "samples").exists()
