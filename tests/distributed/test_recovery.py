"""Two ranks that are killed at random steps end where an undisturbed run does, bit for bit.

`LDM_TEST_KILLS` says how often they are killed; 20 by default.
"""

import os
import shutil
from pathlib import Path

import pytest

from data.storage import open_prefix
from tests.helpers.engines import train_in_turn
from tests.helpers.latents import adam_moments, assert_close, assert_equal, checkpoint_of
from tests.helpers.lives import Kill, train_through_kills
from tests.helpers.ranks import run_ranks
from training.tracking.files import read_metrics

KILLS = int(os.environ.get("LDM_TEST_KILLS", "20"))
BATCH = 8
SAMPLES = 6 * BATCH * KILLS  # a life makes six steps at the most
SETTINGS = (
    "engine=zero2",
    f"batch_size={BATCH}",
    f"train.samples={SAMPLES}",
    f"checkpoint.every_samples={2 * BATCH}",
    f"tracking.log_every_samples={BATCH}",
)

pytestmark = pytest.mark.timeout(300 + 30 * KILLS)  # all runs are made in fixtures


@pytest.fixture(scope="module")
def peaceful(tmp_path_factory: pytest.TempPathFactory, latents: Path) -> Path:
    """A run of two ranks that nobody disturbs."""
    out = tmp_path_factory.mktemp("peaceful") / "run"
    run_ranks(train_in_turn, 2, latents, [(out, SETTINGS)])
    return out


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, latents: Path) -> tuple[Path, list[Kill]]:
    """The same, through all kills."""
    out = tmp_path_factory.mktemp("killed") / "run"
    arguments = (latents, out, SETTINGS, 2, KILLS, 0)
    (kills,) = run_ranks(train_through_kills, 1, *arguments, timeout=240 + 30 * KILLS)
    return out, kills


def test_kills_hit_both_ranks_at_many_steps(killed: tuple[Path, list[Kill]]) -> None:
    """Or the comparisons below would say little."""
    _, kills = killed
    assert len(kills) == KILLS
    assert {kill.rank for kill in kills} == {0, 1}
    assert len({kill.after for kill in kills}) >= 5


def test_the_other_rank_ends_by_itself(killed: tuple[Path, list[Kill]]) -> None:
    _, kills = killed
    assert all(kill.code for kill in kills)


def test_state_is_that_of_a_run_that_nobody_disturbed(
    peaceful: Path, killed: tuple[Path, list[Kill]]
) -> None:
    got, wanted = checkpoint_of(killed[0]), checkpoint_of(peaceful)
    assert got.progress == wanted.progress
    assert_equal(got.weights(), wanted.weights())
    assert_equal(got.averages(), wanted.averages())
    assert_equal(adam_moments(got), adam_moments(wanted))


def test_no_sample_is_lost_or_seen_twice(peaceful: Path, killed: tuple[Path, list[Kill]]) -> None:
    runs = [read_metrics(open_prefix(str(run), "out")) for run in (peaceful, killed[0])]
    for lines in runs:
        assert [line["samples_seen"] for line in lines] == list(range(BATCH, SAMPLES + 1, BATCH))
    assert [line["loss"] for line in runs[0]] == [line["loss"] for line in runs[1]]


# --- other numbers of ranks ---------------------------------------------------------------------

WORLDS = (1, 2, 4, 3, 1)
EVERY = 24  # a batch of 12 is whole for every number of ranks
CHANGING = (
    "unet.dropout=0",  # drawn anew for every rank: it has no place
    "optimizer.eps=1e-2",
    "optimizer.lr=1e-2",
    "batch_size=12",
    "tracking.log_every_samples=12",
)


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory, latents: Path) -> tuple[Path, Path]:
    """A run of one process, and one that goes on with another number of ranks each time."""
    root = tmp_path_factory.mktemp("worlds")
    for number, ranks in enumerate(WORLDS, start=1):
        settings = (*CHANGING, f"train.samples={number * EVERY}", "engine=zero2")
        run_ranks(train_in_turn, ranks, latents, [(root / "changing", settings)])
        shutil.copytree(root / "changing", root / f"after-{number}")
    whole = (*CHANGING, f"train.samples={len(WORLDS) * EVERY}", "engine=single")
    run_ranks(train_in_turn, 1, latents, [(root / "one", whole)])
    return root / "one", root / "changing"


def test_samples_come_in_one_order_whatever_the_number_of_ranks(
    changing: tuple[Path, Path],
) -> None:
    """The loss of each step is that of one process: it is of the same samples, with their noise."""
    one, other = (read_metrics(open_prefix(str(run), "out")) for run in changing)
    places = [line["samples_seen"] for line in one]
    assert places == [line["samples_seen"] for line in other]
    assert places == list(range(12, len(WORLDS) * EVERY + 1, 12))
    for line, wanted in zip(other, one, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-6)


def test_the_state_is_that_of_one_process(changing: tuple[Path, Path]) -> None:
    wanted, got = map(checkpoint_of, changing)
    assert_close(got.weights(), wanted.weights())
    assert_close(got.averages(), wanted.averages())
    assert_close(adam_moments(got), adam_moments(wanted))
