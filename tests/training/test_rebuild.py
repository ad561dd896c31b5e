"""Averages of other lengths, rebuilt from what a run kept, are those of a run that had them."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import Tensor

from conf.errors import UserError
from data.storage import open_prefix
from tests.helpers.latents import assert_equal, checkpoint_of, train_small, write_latents
from training.averages import kind_of
from training.engine.checkpoint import checkpoint_steps
from training.rebuild import rebuilt_average

KEPT = [0.05, 0.1]
SETTINGS = (
    "train.samples=512",
    "optimizer.lr=3e-3",
    "checkpoint.every_samples=200",
    "train.ema_snapshot_every_samples=32",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept two averages, and one, of the same weights, with others."""
    root = tmp_path_factory.mktemp("runs")
    write_latents(root / "latents")
    train_small(root / "latents", root / "two", *SETTINGS, "train.ema_lengths=[0.05,0.1]")
    train_small(root / "latents", root / "others", *SETTINGS, "train.ema_lengths=[0.07,0.15]")
    train_small(root / "latents", root / "none", *SETTINGS)
    return root


def rebuilt(root: Path, length: float, run: str = "two") -> Mapping[str, Tensor]:
    out, kept = open_prefix(str(root / run), "checkpoint"), KEPT if run == "two" else []
    return rebuilt_average(out, checkpoint_of(root / run), kept, length)


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    squares = [(one[name] - value).square().sum().item() for name, value in other.items()]
    return sum(squares) ** 0.5


@pytest.mark.parametrize("length", [0.07, 0.15])
def test_another_length_is_that_of_a_run_that_had_it(runs: Path, length: float) -> None:
    wanted = checkpoint_of(runs / "others").whole(kind_of(length))
    kept = [checkpoint_of(runs / "two").whole(kind_of(one)) for one in KEPT]
    nearest = min(distance(one, wanted) for one in kept)
    assert distance(rebuilt(runs, length), wanted) < 0.1 * nearest


def test_a_length_that_was_kept_is_given_back(runs: Path) -> None:
    wanted = checkpoint_of(runs / "two").whole(kind_of(0.05))
    assert distance(rebuilt(runs, 0.05), wanted) < 1e-4 * distance(
        wanted, checkpoint_of(runs / "two").weights()
    )


def test_keeping_them_changes_nothing_else(runs: Path) -> None:
    with_, without = checkpoint_of(runs / "two"), checkpoint_of(runs / "none")
    assert_equal(with_.weights(), without.weights())
    assert_equal(with_.averages(), without.averages())
    steps = checkpoint_steps(open_prefix(str(runs / "two" / "snapshots"), "out"))
    assert [int(step) for step in steps] == list(range(4, 65, 4))
    assert not (runs / "none" / "snapshots").exists()


def test_what_cannot_be_rebuilt_is_refused(runs: Path) -> None:
    with pytest.raises(UserError, match="is out of reach of the 32 averages"):
        rebuilt(runs, 0.01)
    with pytest.raises(UserError, match="kept no averages"):
        rebuilt(runs, 0.07, "none")
