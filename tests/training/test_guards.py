"""Updates that fail, losses that jump, ranks that drift apart."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from conf.errors import RunError
from data.storage import open_prefix
from tests.helpers.latents import (
    adam_moments,
    assert_equal,
    checkpoint_of,
    train_small,
    write_latents,
)
from training.diagnose import diagnosed, weights_not_finite
from training.engine.checkpoint import file_name
from training.engine.pieces import EMA, MODEL
from training.engine.strategy import Engine
from training.guards import Spikes, check_digests, weights_digest
from training.tracking.files import read_metrics

EVERY_STEP = (
    "checkpoint.every_samples=8",
    "checkpoint.keep_last=9",
    "tracking.log_every_samples=8",
)


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """A dataset of 37 latents, one of which has moments that are not finite."""
    write_latents(tmp_path / "latents", nan_in="0-003")
    return tmp_path / "latents"


# --- updates that are not finite ---------------------------------------------------------------


def test_the_run_stops_before_the_update_and_names_samples_and_layer(
    poisoned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match="weights are as they were before; look at"):
        train_small(poisoned, tmp_path / "run", "train.samples=64", *EVERY_STEP)
    (report,) = (tmp_path / "run").glob("nonfinite-*.json")
    told = json.loads(report.read_text())
    (batch,) = told["ranks"][0]["batches"]
    assert batch["first_not_finite"] == "conv_in"
    assert told["ranks"][0]["weights_not_finite"] == []
    bad = [
        name for name, loss in zip(batch["samples"], batch["losses"], strict=True) if loss == "nan"
    ]
    assert [name.rpartition(": ")[2] for name in bad] == ["0-003"]
    assert "not finite, first in conv_in" in capsys.readouterr().out
    lines = read_metrics(open_prefix(str(tmp_path / "run"), "out"))
    assert [line["samples_seen"] for line in lines] == list(range(8, told["samples_seen"] + 1, 8))
    for folder in sorted((tmp_path / "run" / "checkpoints").glob("*")):
        kept = load_file(folder / file_name(EMA, 0))
        assert all(weights.isfinite().all() for weights in kept.values())


def test_a_skipped_batch_leaves_no_trace_but_its_place(poisoned: Path, tmp_path: Path) -> None:
    settings = ("train.samples=40", "guards.nonfinite=skip", *EVERY_STEP)
    train_small(poisoned, tmp_path / "run", *settings)
    lines = read_metrics(open_prefix(str(tmp_path / "run"), "out"))
    assert [line["samples_seen"] for line in lines] == [8, 16, 24, 32, 40]
    skipped = [line["skipped"] for line in lines]
    assert skipped[-1] == 1
    at = skipped.index(1) + 1  # the batch that was skipped, counted from 1
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    weights = [(folder / file_name(MODEL, 0)).read_bytes() for folder in folders]
    same = [i + 1 for i in range(1, 5) if weights[i] == weights[i - 1]]
    assert same == ([at] if at > 1 else [])
    assert checkpoint_of(tmp_path / "run").progress.skipped == 1


def test_in_fp16_the_loss_scale_falls_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gradients that overflow in every batch are told once the factor is as small as it gets."""
    write_latents(tmp_path / "latents")
    update = Engine.update

    def overflowing(engine: Engine, batches: Any, losses: Any, lr: float, _: float) -> Any:
        return update(engine, batches, losses, lr, 2.0**60)

    monkeypatch.setattr(Engine, "update", overflowing)
    settings = ("engine.precision=fp16", "train.samples=400", *EVERY_STEP)
    with pytest.raises(RunError, match="after 128 samples; the weights are as they were"):
        train_small(tmp_path / "latents", tmp_path / "run", *settings)
    lines = read_metrics(open_prefix(str(tmp_path / "run"), "out"))
    assert [line["loss_scale"] for line in lines] == [2.0**n for n in range(15, -1, -1)]
    progress = checkpoint_of(tmp_path / "run").progress
    assert (progress.skipped, progress.overflows) == (16, 16)
    (report,) = (tmp_path / "run").glob("nonfinite-*.json")
    assert json.loads(report.read_text())["samples_seen"] == 128
    assert "not finite, in the gradients alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dry", "said"), [("true", "first micro-batch: the loss of .*0-003"), ("false", "loss is nan")]
)
def test_in_fp16_a_loss_that_is_not_finite_is_no_overflow(
    tmp_path: Path, dry: str, said: str
) -> None:
    write_latents(tmp_path / "bad", shards=[8], nan_in="0-003")  # in every batch
    settings = ("engine.precision=fp16", f"guards.dry_batch={dry}", *EVERY_STEP)
    with pytest.raises(RunError, match=said):
        train_small(tmp_path / "bad", tmp_path / "run", *settings)
    assert len([*(tmp_path / "run").glob("nonfinite-00000000.json")]) == (dry == "false")


def test_in_fp16_such_a_batch_counts_towards_those_that_may_be_skipped(tmp_path: Path) -> None:
    write_latents(tmp_path / "bad", shards=[8], nan_in="0-003")
    settings = ("engine.precision=fp16", "guards.nonfinite=skip", "guards.max_skipped=2")
    with pytest.raises(RunError, match="after 16 samples, as 2 before it"):
        train_small(tmp_path / "bad", tmp_path / "run", *settings)


def test_a_run_resumes_when_no_update_was_ever_applied(tmp_path: Path) -> None:
    write_latents(tmp_path / "bad", shards=[8], nan_in="0-003")  # in every batch
    settings = ("guards.nonfinite=skip", *EVERY_STEP)
    for samples in (16, 32):
        train_small(tmp_path / "bad", tmp_path / "run", f"train.samples={samples}", *settings)
    progress = checkpoint_of(tmp_path / "run").progress
    assert (progress.updates, progress.skipped) == (4, 4)


def test_a_run_with_a_skipped_batch_resumes_bit_for_bit(poisoned: Path, tmp_path: Path) -> None:
    for name, parts in {"whole": [48], "parts": [8, 16, 24, 32, 40, 48]}.items():
        for samples in parts:
            settings = (f"train.samples={samples}", "guards.nonfinite=skip")
            train_small(poisoned, tmp_path / name, *settings)
    whole, parts = checkpoint_of(tmp_path / "whole"), checkpoint_of(tmp_path / "parts")
    assert whole.progress == parts.progress
    assert whole.progress.skipped == 1
    assert_equal(parts.weights(), whole.weights())
    assert_equal(parts.averages(), whole.averages())
    assert_equal(adam_moments(parts), adam_moments(whole))


def test_no_more_batches_are_skipped_than_allowed(poisoned: Path, tmp_path: Path) -> None:
    settings = ("train.samples=148", "batch_size=4", "guards.nonfinite=skip")
    with pytest.raises(RunError, match="as 2 before it"):
        train_small(poisoned, tmp_path / "run", *settings, "guards.max_skipped=2")


def test_a_diagnosis_names_the_first_layer_and_the_largest() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.fill_(3.0)
        model[0].bias.zero_()
        model[2].weight.fill_(float("inf"))
    with diagnosed(model) as found:
        model(torch.ones(1, 2))
    assert found.first == "2"
    assert found.largest["0"] == found.largest["1"] == 6.0
    assert weights_not_finite(model) == ["2.weight"]
    with diagnosed(model) as again:
        pass
    model(torch.ones(1, 2))
    assert again.largest == {}  # no hook is left


# --- spikes ------------------------------------------------------------------------------------


def noisy(level: float, count: int) -> list[float]:
    chance = torch.Generator().manual_seed(int(level * 10))
    return (level + 0.1 * torch.randn(count, generator=chance)).tolist()


def test_a_jump_is_told_and_counts_for_little() -> None:
    spikes = Spikes(6.0)
    assert [spikes.meet(one) for one in noisy(1.0, 1000)] == [None] * 1000
    mean = spikes.mean
    assert mean == pytest.approx(1.0, abs=0.05)
    above = spikes.meet(1e6)
    assert above is not None and above > 1e6
    assert spikes.mean == pytest.approx(mean, abs=0.02)
    assert spikes.meet(0.0) is None  # a fall is none


def test_a_jump_that_lasts_is_told_once() -> None:
    spikes = Spikes(6.0)
    told = [spikes.meet(one) for one in [*noisy(1.0, 100), *noisy(2.0, 1000), *noisy(30.0, 1000)]]
    assert [place for place, above in enumerate(told) if above is not None] == [100, 1100]
    assert spikes.mean == pytest.approx(30.0, abs=0.2)


def test_a_run_says_that_its_loss_has_jumped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The learning rate ruins the weights, as soon as a few losses are known."""
    write_latents(tmp_path / "latents")
    monkeypatch.setattr(Spikes, "WARM_UP", 2)
    settings = ("train.samples=32", "optimizer.lr=2", "optimizer.warmup_samples=24")
    train_small(tmp_path / "latents", tmp_path / "run", *settings)
    assert "standard deviations above its running mean" in capsys.readouterr().out


def test_nothing_is_told_early_on_or_when_off() -> None:
    assert [Spikes(6.0).meet(loss) for loss in (1.0, 100.0)] == [None, None]
    off = Spikes(0.0)
    assert [off.meet(loss) for loss in [1.0] * 100 + [100.0]] == [None] * 101


# --- digests -----------------------------------------------------------------------------------


def test_one_flipped_bit_changes_the_digest_and_memory_layout_does_not() -> None:
    model = nn.Conv2d(4, 8, 3)
    before = weights_digest(model)
    assert weights_digest(model.to(memory_format=torch.channels_last)) == before
    bits = model.weight.data.view(torch.int32)
    bits[3, 1, 0, 2] ^= 1
    assert weights_digest(model) != before
    bits[3, 1, 0, 2] ^= 1
    assert weights_digest(model) == before


def test_the_rank_that_differs_is_named() -> None:
    check_digests([5, 5, 5])
    with pytest.raises(RunError, match="weights of rank 2 are not"):
        check_digests([5, 5, 6, 5])
    with pytest.raises(RunError, match="weights of rank 0, 3 are not"):
        check_digests([6, 5, 5, 7, 5])


@pytest.mark.parametrize(
    ("digests", "said"),
    [
        ([5, 3], "rank 0 and of rank 1 differ, and no majority"),
        ([3, 5], "rank 0 and of rank 1 differ"),
        ([5, 3, 3, 5], "rank 0, 3 and of rank 1, 2 differ"),
        ([5, 3, 3, 4], "rank 0 and of rank 1, 2 and of rank 3 differ"),
    ],
)
def test_no_rank_is_blamed_without_a_majority(digests: list[int], said: str) -> None:
    with pytest.raises(RunError, match=said):
        check_digests(digests)
