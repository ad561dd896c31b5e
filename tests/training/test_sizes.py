"""What a run takes on its disk, told before it begins."""

from pathlib import Path

import pytest

from conf.enums import OptimizerKind
from conf.errors import UserError
from conf.training import CheckpointConfig, TrainingConfig
from tests.helpers.latents import train_small, write_latents
from training.sizes import run_bytes

SIZES = (10, 5000)
WEIGHTS = 4 * sum(SIZES)


def test_a_run_takes_what_it_keeps_and_one_checkpoint_more() -> None:
    train = TrainingConfig(samples=100, ema_lengths=[0.05, 0.1], ema_snapshot_every_samples=30)
    keep = CheckpointConfig(every_samples=10, keep_last=2, keep_every_samples=25, keep_best=1)
    # Weights, their own average, two of other lengths, two moments; 2 + 4 + 1 + 1 times.
    checkpoints = 8 * 6 * WEIGHTS
    snapshots = 3 * 2 * WEIGHTS
    assert run_bytes(SIZES, OptimizerKind.adamw, train, keep) == checkpoints + snapshots


def test_a_disk_without_room_for_the_snapshots_is_refused_before_the_first_step(
    tmp_path: Path,
) -> None:
    latents, out = tmp_path / "latents", tmp_path / "run"
    write_latents(latents)
    many = ("train.samples=8_000_000_000_000", "train.ema_lengths=[0.05,0.1]")
    often = ("train.ema_snapshot_every_samples=8", "checkpoint.every_samples=80")
    with pytest.raises(UserError, match="are needed") as refused:
        train_small(latents, out, *many, *often)
    assert "make room" in str(refused.value)
    assert not out.exists() or not list(out.iterdir())
