"""Sweeps of real trainings, as a user starts them."""

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from conf.compose import compose_config
from data.storage import open_prefix
from launch.report import report
from launch.sweep.record import Outcome, Trial, ranked, read_trials
from tests.helpers.commands import ldm, running_ldm, wait_for_end, wait_until
from tests.helpers.latents import SMALL_UNET, write_latents
from training.track import read_metrics

EVERY = 40
SETTINGS = (
    *SMALL_UNET,
    "unet.dropout=0",
    "tracking.kind=off",
    "train.ema_half_life=20",
    "optimizer.warmup_samples=1",
    "engine.precision=fp32",
    "guards.dry_batch=false",
    f"validation.every_samples={EVERY}",
    f"checkpoint.every_samples={EVERY}",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents to train on, the same with a sample that is not finite, and others held out."""
    root = tmp_path_factory.mktemp("data")
    write_latents(root / "latents")
    write_latents(root / "broken", nan_in="0-003")
    write_latents(root / "held_out", (16,), seed=1)
    return root


def sweep_command(data: Path, out: Path, *overrides: str) -> list[str]:
    """`ldm train -m`; the later of two equal settings counts."""
    told = [
        *SETTINGS,
        f"data.url={data}/latents",
        f"validation.url={data}/held_out",
        f"out={out}",
        "batch_size=8",
        *overrides,
    ]
    return ["train", "-m", *{text.partition("=")[0]: text for text in told}.values()]


def trials_of(out: Path) -> list[Trial]:
    return read_trials(open_prefix(str(out), "out"))


def starts(out: Path, number: int) -> int:
    """How often a trial's process was started."""
    return (out / f"trials/{number:03d}.log").read_text().count("M parameters, ")


def test_two_workers_make_a_grid_of_four_once_and_it_can_be_reported(
    data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    told = ("optimizer.lr=1e-3,1e-9", "diffusion.weighting=uniform,min_snr", "train.samples=80")
    command = sweep_command(data, out, *told)
    logs = [tmp_path / "a/log", tmp_path / "b/log"]
    with ExitStack() as stack:
        for log in logs:
            log.parent.mkdir()
        workers = [stack.enter_context(running_ldm(log, *command)) for log in logs]
        ended = [wait_for_end(*pair) for pair in zip(workers, logs, strict=True)]
    assert [one.code for one in ended] == [0, 0], ended
    trials = trials_of(out)
    assert [one.number for one in trials] == [0, 1, 2, 3]
    assert {one.outcome for one in trials} == {Outcome.complete}
    assert len({tuple(one.values.values()) for one in trials}) == 4
    assert [starts(out, one.number) for one in trials] == [1] * 4
    made = [{n for n in range(4) if f"trial {n:03d}: complete" in one.output} for one in ended]
    assert made[0] | made[1] == {0, 1, 2, 3} and not made[0] & made[1]
    assert made[0] and made[1]
    for one in trials:  # what is kept is what the run itself says
        lines = read_metrics(open_prefix(str(out / f"{one.number:03d}"), "out"))
        assert one.loss == [line["val_loss"] for line in lines if "val_loss" in line][-1]
    best = ranked(trials)[0]
    assert best.values["optimizer.lr"] == "0.001"
    again = ldm(tmp_path / "again", *command)  # there is nothing left to do
    assert again.code == 0, again.output
    assert [starts(out, one.number) for one in trials] == [1] * 4
    refused = ldm(tmp_path / "other", *sweep_command(data, out, *told, "train.samples=88"))
    assert refused.code == 2 and "train.samples is 80" in refused.output

    report(compose_config("report", [f"run={out}", "tracking.kind=off"]))
    page = (out / "report.html").read_text()
    assert page.count("src=") == page.count('src="data:image/png;base64,') == 2
    assert "http" not in page and "<script" not in page
    assert f"ldm train {SMALL_UNET[0]}" in page and f"out={out}/best" in page
    order = [page.index(f"<td>{one.number:03d}</td>") for one in ranked(trials)]
    assert order == sorted(order)


def test_a_killed_trial_goes_on_and_a_stopped_sweep_repeats_nothing(
    data: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "sweep", tmp_path / "log"
    command = sweep_command(data, out, "optimizer.lr=1e-3,3e-4", "train.samples=8_000")

    def checkpoints(number: int) -> list[int]:
        return sorted(int(one.parent.name) for one in out.glob(f"{number:03d}/**/commit.json"))

    with running_ldm(log, *command, "checkpoint.keep_last=100") as process:
        wait_until(lambda: bool(checkpoints(0)), process, log)
        for trial in psutil.Process(process.pid).children():
            trial.kill()
        wait_until(lambda: starts(out, 0) == 2, process, log)
        seen = max(checkpoints(0))
        wait_until(lambda: max(checkpoints(0)) > seen, process, log)
        os.kill(process.pid, signal.SIGTERM)
        ended = wait_for_end(process, log)
    assert ended.code == 75, ended.output
    assert "trial 000: signal 9; it goes on" in ended.output
    assert "the same command goes on from there" in ended.output
    assert "Traceback" not in ended.output
    assert trials_of(out) == []
    saved = max(checkpoints(0))
    assert "checkpoint saved" in (out / "trials/000.log").read_text()

    ended = ldm(tmp_path / "again", *command, "sweep.parallel=2")
    assert ended.code == 0, ended.output
    first, second = trials_of(out)
    assert (first.outcome, second.outcome) == (Outcome.complete, Outcome.complete)
    assert (first.failures, second.failures) == (["signal 9"], [])
    assert (starts(out, 0), starts(out, 1)) == (3, 1)
    assert f"from {saved:,} samples" in (out / "trials/000.log").read_text()


def test_a_bad_trial_is_pruned(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    told = ("optimizer.lr=1e-3,1e-9", "train.samples=8_000", "sweep.pruner=median")
    ended = ldm(tmp_path / "log", *sweep_command(data, out, *told, "sweep.startup_trials=1"))
    assert ended.code == 0, ended.output
    good, bad = trials_of(out)
    assert (good.outcome, bad.outcome) == (Outcome.complete, Outcome.pruned)
    lines = read_metrics(open_prefix(str(out / "001"), "out"))
    assert lines[-1]["samples_seen"] < 8_000
    assert "best: trial 000" in ended.output


def test_what_diverges_or_cannot_be_is_recorded_and_ends_nothing(
    data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    told = (f"data.url={data}/broken,{data}/latents", "batch_size=8,9", "micro_batch_size=8")
    command = sweep_command(data, out, *told, "train.samples=40", "sweep.parallel=2")
    ended = ldm(tmp_path / "log", *command)
    assert ended.code == 0, ended.output
    trials = trials_of(out)
    outcomes = [one.outcome for one in trials]
    assert outcomes == [Outcome.diverged, Outcome.refused, Outcome.complete, Outcome.refused]
    assert "the loss is nan" in trials[0].failures[-1]
    assert "batch_size=9" in trials[1].failures[-1]
    assert starts(out, 0) == 1
    kept = json.loads((out / "trials/000.json").read_text())
    assert kept["outcome"] == "diverged" and kept["loss"] is None
