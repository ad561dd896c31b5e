"""`ldm train` goes on while its checkpoints are written, and hears of it when they cannot be."""

import json
import threading
from pathlib import Path

import pytest
import torch

from conf.errors import RunError
from data.storage import Prefix, open_prefix
from tests.helpers.holding import held_by_a_process
from tests.helpers.latents import checkpoint_of, train_small, write_latents
from training.engine.lease import LEASE
from training.engine.strategy import Engine
from training.tracking.files import read_metrics

EVERY_STEP = ("checkpoint.every_samples=8", "tracking.log_every_samples=8")


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    write_latents(folder)
    return folder


class Steps:
    """Tells when so many steps were made, and holds a store back until then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, until: int) -> None:
        self.events: list[str] = []
        enough, update, write = threading.Event(), Engine.update, Prefix.write

        def counted(engine: Engine, *args: object) -> dict[str, float]:
            self.events.append("step")
            if self.events.count("step") >= until:
                enough.set()
            return update(engine, *args)  # type: ignore[arg-type]

        def slow(prefix: Prefix, name: str, content: bytes | memoryview) -> None:
            if "/checkpoints/" in prefix.root:
                assert enough.wait(60), "training waits for the store"
            write(prefix, name, content)
            if name == "commit.json":
                self.events.append("commit")

        monkeypatch.setattr(Engine, "update", counted)
        monkeypatch.setattr(Prefix, "write", slow)


def test_steps_are_made_while_a_slow_store_takes_a_checkpoint(
    latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first checkpoint is due after two steps, and the next save, after four, waits for it.
    steps = Steps(monkeypatch, until=4)
    train_small(latents, tmp_path, "train.samples=48", "checkpoint.every_samples=16")
    assert steps.events.index("commit") >= 4
    assert steps.events.count("step") == 6
    assert steps.events.count("commit") == 3
    assert steps.events[-1] == "commit"  # the last one is waited for
    assert checkpoint_of(tmp_path).progress.samples_seen == 48


def test_the_time_that_training_stood_still_is_on_the_line_after(
    latents: Path, tmp_path: Path
) -> None:
    settings = ("checkpoint.every_samples=16", "tracking.log_every_samples=8", "train.samples=32")
    train_small(latents, tmp_path, *settings)
    lines = read_metrics(open_prefix(str(tmp_path), "out"))
    assert [line["samples_seen"] for line in lines if "checkpoint_stall" in line] == [24]
    (stall,) = [line["checkpoint_stall"] for line in lines if "checkpoint_stall" in line]
    assert 0 < stall < 60


def fail_to_write(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Have the store refuse the averages of a checkpoint."""
    write = Prefix.write

    def failing(self: Prefix, name: str, content: bytes | memoryview) -> None:
        if name.startswith("ema-") and self.root.endswith(step):
            raise OSError("no such bucket")
        write(self, name, content)

    monkeypatch.setattr(Prefix, "write", failing)


def test_a_store_that_fails_ends_training_with_the_next_step(
    latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not with the next checkpoint, which may be hours away."""
    update, steps = Engine.update, 0

    def counted(engine: Engine, *args: object) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps == 7:  # after the second checkpoint, which by now has failed
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join(60)
        return update(engine, *args)  # type: ignore[arg-type]

    fail_to_write(monkeypatch, "00000006")
    monkeypatch.setattr(Engine, "update", counted)
    with pytest.raises(RunError, match=r"could not be saved by rank 0 \(no such bucket\)"):
        train_small(latents, tmp_path, "train.samples=800", "checkpoint.every_samples=24")
    assert steps in (6, 7)
    monkeypatch.undo()
    assert checkpoint_of(tmp_path).progress.updates == 3


def test_a_last_checkpoint_that_fails_is_no_success(
    latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_write(monkeypatch, "00000002")
    with pytest.raises(RunError, match=r"could not be saved by rank 0 \(no such bucket\)"):
        train_small(latents, tmp_path, "train.samples=16")
    assert not (tmp_path / "summary.json").exists()


def test_a_run_that_another_process_trains_is_refused_until_that_one_is_gone(
    latents: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_small(latents, run, "train.samples=8")
    files = open_prefix(str(run), "out").files()
    with held_by_a_process(open_prefix(str(run), "out"), tmp_path / "log") as process:
        with pytest.raises(RunError, match=r"run: process \d+ of \S+ is training this run"):
            train_small(latents, run, "train.samples=16")
        process.kill()
        process.wait()
        assert open_prefix(str(run), "out").files().keys() == {*files, LEASE}
        train_small(latents, run, "train.samples=16")
    assert checkpoint_of(run).progress.samples_seen == 16
    assert not (run / LEASE).exists()


def test_the_best_by_validation_is_kept(tmp_path: Path) -> None:
    """The learning rate is so high that what comes later is worse."""
    write_latents(tmp_path / "latents")
    write_latents(tmp_path / "held_out", shards=(8,), seed=1)
    settings = (
        *EVERY_STEP,
        "train.samples=48",
        "checkpoint.keep_last=1",
        "checkpoint.keep_best=1",
        f"validation.url={tmp_path / 'held_out'}",
        "validation.every_samples=8",
        "optimizer.lr=1",
    )
    run = tmp_path / "run"
    torch.manual_seed(0)
    train_small(tmp_path / "latents", run, *settings)
    lines = [x for x in read_metrics(open_prefix(str(run), "out")) if "val_loss" in x]
    best = min(lines, key=lambda line: line["val_loss"])
    assert best is not lines[-1]
    commits = {
        x.parent.name: json.loads(x.read_text()) for x in run.glob("checkpoints/*/commit.json")
    }
    assert sorted(commits) == [f"{best['samples_seen'] // 8:08d}", "00000006"]
    for commit in commits.values():
        (line,) = [x for x in lines if x["samples_seen"] == commit["samples_seen"]]
        assert commit["val_loss"] == line["val_loss"]
    checkpoint = checkpoint_of(run)
    assert checkpoint.val_loss == lines[-1]["val_loss"]
    assert checkpoint.validation == commits["00000006"]["validation"] is not None
    train_small(tmp_path / "latents", run, *settings, "train.samples=56", "validation.seed=1")
    assert checkpoint_of(run).validation not in (None, checkpoint.validation)
    assert sorted(x.name for x in run.glob("checkpoints/*")) == [min(commits), "00000007"]


def test_the_first_after_every_so_many_samples_is_kept_for_good(
    latents: Path, tmp_path: Path
) -> None:
    settings = ("train.samples=64", "checkpoint.keep_last=1", "checkpoint.keep_every_samples=20")
    train_small(latents, tmp_path, *EVERY_STEP, *settings)
    kept = [json.loads(x.read_text()) for x in tmp_path.glob("checkpoints/*/commit.json")]
    assert sorted(one["samples_seen"] for one in kept) == [24, 40, 64]
