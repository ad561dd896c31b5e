"""Sweeps of real trainings, as a user starts them."""

import json
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread

import psutil
import pytest

from conf.compose import compose_config
from conf.errors import RunError, UserError
from data.storage import open_prefix
from launch.report import report
from launch.sweep import command as sweeping
from launch.sweep import study
from launch.sweep.command import sweep_trainings
from launch.sweep.record import Outcome, Trial, ranked, read_trials
from tests.helpers.commands import ldm, running_ldm, wait_for_end, wait_until
from tests.helpers.latents import SMALL_UNET, write_latents
from training.tracking.files import read_metrics

EVERY = 80
SETTINGS = (
    *SMALL_UNET,
    "unet.dropout=0",
    "tracking.kind=off",
    "train.ema_half_life=20",
    "optimizer.warmup_samples=1",
    "engine.precision=fp32",
    "guards.dry_batch=false",
    "validation.samples=8",
    f"validation.every_samples={EVERY}",
    f"checkpoint.every_samples={EVERY}",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents to train on, and others held out."""
    root = tmp_path_factory.mktemp("data")
    write_latents(root / "latents")
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
    # What does not learn is as it was, and is measured with the same noise in every trial.
    still = [one.loss for one in trials if one.values["optimizer.lr"] != "0.001"]
    assert len(still) == 2 and still[0] == pytest.approx(still[1], rel=1e-5)
    best = ranked(trials)[0]
    assert best.values["optimizer.lr"] == "0.001"
    sweep_trainings(command[2:])  # there is nothing left to do
    assert [starts(out, one.number) for one in trials] == [1] * 4
    with pytest.raises(UserError, match=r"there batch_size is 8, asked for was 16"):
        sweep_trainings(sweep_command(data, out, *told, "batch_size=16")[2:])

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
    command = sweep_command(data, out, "optimizer.lr=choice(1e-3)", "train.samples=400")

    def saved() -> int:
        """Samples seen at the last checkpoint, whose folder's name counts updates."""
        commits = out.glob("000/checkpoints/*/commit.json")
        return max((8 * int(one.parent.name) for one in commits), default=0)

    with running_ldm(log, *command) as process:
        wait_until(lambda: saved() > 0, process, log)
        for trial in psutil.Process(process.pid).children():
            trial.kill()
        wait_until(lambda: starts(out, 0) == 2, process, log)
        before = saved()
        wait_until(lambda: saved() > before, process, log)
        os.kill(process.pid, signal.SIGTERM)
        ended = wait_for_end(process, log)
    assert ended.code == 75, ended.output
    assert "trial 000: signal 9; it goes on" in ended.output
    assert "the same command goes on from there" in ended.output
    assert "Traceback" not in ended.output
    assert trials_of(out) == []
    assert "checkpoint saved" in (out / "trials/000.log").read_text()
    stopped = saved()
    assert stopped < 400

    ended = ldm(tmp_path / "again", *command)
    assert ended.code == 0, ended.output
    (trial,) = trials_of(out)
    assert (trial.outcome, trial.failures) == (Outcome.complete, ["signal 9"])
    assert starts(out, 0) == 3
    assert f"from {stopped:,} samples" in (out / "trials/000.log").read_text()


def test_a_database_is_waited_for_and_when_it_stays_away_trials_save_and_the_sweep_ends(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, told = tmp_path / "sweep", Event()
    monkeypatch.setattr(sweeping, "SECONDS_WITHOUT_DATABASE", 3.0)
    monkeypatch.setattr(sweeping, "PAUSE_SECONDS", 0.1)
    database, away, said = out / "study.db", out / "away", []
    monkeypatch.setattr(study, "say", lambda line: (said.append(line), told.set()))

    def hide() -> None:
        while not (out / "000/latest").exists():
            time.sleep(0.02)
        database.rename(away)
        database.mkdir()
        told.wait()
        told.clear()
        database.rmdir()
        away.rename(database)
        told.wait()
        database.rename(away)
        database.mkdir()

    hiding = Thread(target=hide, daemon=True)
    hiding.start()
    with pytest.raises(RunError, match="for the sweep's database, trials saved"):
        sweep_trainings(
            sweep_command(data, out, "optimizer.lr=choice(1e-3)", "train.samples=100000")[2:]
        )
    hiding.join()
    assert ["answers again" in line for line in said] == [False, True, False]
    assert "checkpoint saved" in (out / "trials/000.log").read_text()


def test_trials_that_do_badly_are_recorded_and_end_nothing(data: Path, tmp_path: Path) -> None:
    """One that learns, one that diverges, one that does not learn, one that is refused.

    The third begins when the second ends, so late that the first is complete before it.
    """
    out = tmp_path / "sweep"
    told = ("optimizer.lr=1e-3,1e30,1e-9,-1", "train.samples=320")
    pruning = ("sweep.pruner=median", "sweep.startup_trials=1", "sweep.parallel=2")
    ended = ldm(tmp_path / "log", *sweep_command(data, out, *told, *pruning))
    assert ended.code == 0, ended.output
    trials = trials_of(out)
    outcomes = [one.outcome for one in trials]
    assert outcomes == [Outcome.complete, Outcome.diverged, Outcome.pruned, Outcome.refused]
    lines = read_metrics(open_prefix(str(out / "002"), "out"))
    assert lines[-1]["samples_seen"] < 320
    assert [starts(out, number) for number in range(3)] == [1, 1, 1]
    assert "the loss is nan" in trials[1].failures[-1]
    assert "optimizer.lr=-1" in trials[3].failures[-1]
    kept = json.loads((out / "trials/001.json").read_text())
    assert kept["outcome"] == "diverged" and kept["loss"] is None
    assert "best: trial 000" in ended.output
