"""Training on several datasets of several sizes at once."""

from pathlib import Path

import pytest

from conf.errors import UserError
from data.storage import open_prefix
from tests.helpers.latents import (
    SQUARE,
    adam_moments,
    assert_equal,
    assert_same_state,
    checkpoint_of,
    train_small,
    write_latents,
)
from training.diffuse import datasets_of
from training.run import read_run


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("mixed")
    write_latents(folder / "a", (9, 8), 0, (SQUARE, (48, 80)))
    write_latents(folder / "b", (5, 4), 1, (SQUARE, (80, 48)))
    return folder / "a", folder / "b"


def _train(datasets: tuple[Path, Path], out: Path, *overrides: str) -> None:
    first, second = datasets
    mixed = (f"data.also=[{second}]", "data.weights=[1,2]", "data.block_shards=1")
    train_small(first, out, *mixed, *overrides)


def test_a_mixture_that_stops_and_goes_on_equals_one_that_does_not(
    datasets: tuple[Path, Path], tmp_path: Path
) -> None:
    _train(datasets, tmp_path / "whole", "train.samples=64")
    for samples in (24, 64):
        _train(datasets, tmp_path / "parts", f"train.samples={samples}")
    whole, parts = checkpoint_of(tmp_path / "whole"), checkpoint_of(tmp_path / "parts")
    assert_same_state(parts, whole)
    assert_equal(adam_moments(parts), adam_moments(whole))


def test_a_run_keeps_to_its_mixture(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    _train(datasets, tmp_path / "run")
    with pytest.raises(
        UserError, match=r"data.weights.* is \[1.0, 2.0\], asked for was \[2.0, 1.0\]"
    ):
        _train(datasets, tmp_path / "run", "data.weights=[2,1]")
    with pytest.raises(UserError, match=r"holds other work: there data.fingerprints"):
        train_small(datasets[0], tmp_path / "run", "data.block_shards=1")


def test_a_run_knows_all_its_datasets(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    _train(datasets, tmp_path / "run")
    out = open_prefix(str(tmp_path / "run"), "checkpoint")
    found = datasets_of(out, read_run(out, "train"))
    assert [dataset.prefix.url for dataset in found] == list(map(str, datasets))


def test_sizes_that_the_unet_cannot_halve_are_refused(tmp_path: Path) -> None:
    write_latents(tmp_path / "odd", (4,), 0, (SQUARE, (56, 72)))
    with pytest.raises(UserError, match="halves latents of 7 places more often than they can be"):
        train_small(tmp_path / "odd", tmp_path / "run")
