"""A batch whose gradient is not finite changes nothing, on any engine and every rank alike."""

import json
from pathlib import Path

import pytest

from tests.helpers.engines import train_in_turn
from tests.helpers.latents import adam_moments, assert_close, checkpoint_of, write_latents
from tests.helpers.ranks import run_ranks

KINDS = ("ddp", "zero1", "zero2", "zero3")
SETTINGS = (
    "guards.nonfinite=skip",
    "guards.digest_every_samples=8",
    "unet.dropout=0",
    "optimizer.eps=1e-2",
    "optimizer.lr=0.1",
    "train.samples=48",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, and one of two ranks on every engine."""
    root = tmp_path_factory.mktemp("runs")
    write_latents(root / "latents", nan_in="0-003")
    for ranks, kinds in ((1, ("single",)), (2, KINDS)):
        cases = [(root / kind, (*SETTINGS, f"engine={kind}")) for kind in kinds]
        run_ranks(train_in_turn, ranks, root / "latents", cases)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_all_ranks_skip_the_batch_and_go_on_as_one_process(runs: Path, kind: str) -> None:
    reference, checkpoint = checkpoint_of(runs / "single"), checkpoint_of(runs / kind)
    assert checkpoint.progress == reference.progress
    assert checkpoint.progress.skipped == 1
    assert_close(checkpoint.weights(), reference.weights())
    assert_close(checkpoint.averages(), reference.averages())
    assert_close(adam_moments(checkpoint), adam_moments(reference))


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_has_the_samples_of_both_ranks(runs: Path, kind: str) -> None:
    (report,) = (runs / kind).glob("nonfinite-*.json")
    ranks = json.loads(report.read_text())["ranks"]
    assert [rank["rank"] for rank in ranks] == [0, 1]
    named = [name for rank in ranks for batch in rank["batches"] for name in batch["samples"]]
    assert len(set(named)) == 8
    assert sum(name.endswith(": 0-003") for name in named) == 1
    first = [batch["first_not_finite"] for rank in ranks for batch in rank["batches"]]
    assert sorted(first, key=str) == [None, "conv_in"]
