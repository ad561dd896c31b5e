"""`cluster.minutes` are kept: a checkpoint is there before they are over."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from conf.errors import Preempted, RunError
from data.process import process_age
from data.storage import Prefix
from tests.helpers.latents import checkpoint_of, train_small, write_latents
from training.engine.strategy import Engine
from training.stop import Deadline

MB = 10**6


def test_there_is_room_for_a_step_and_two_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr("training.stop.process_age", lambda: 0.0)
    deadline = Deadline(1.0, 2000 * MB)  # ends at 1060; 10 s to write, for as long as none was
    now = 1039.0
    assert not deadline.near(save_seconds=0.0)
    now = 1041.0
    assert deadline.near(save_seconds=0.0)
    assert not deadline.near(save_seconds=5.0)
    deadline.step(3.0)
    deadline.step(9.5)
    deadline.step(1.0)
    assert deadline.near(save_seconds=5.0)  # 9.5 + 2 * 5
    for _ in range(Deadline.STEPS):
        deadline.step(1.0)
    assert not deadline.near(save_seconds=5.0)
    now = 1058.5
    assert Deadline(None, 10**12).near(save_seconds=1e9) is False


def test_time_is_counted_from_the_start_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.stop.process_age", lambda: 50.0)
    assert not Deadline(1.0, 0).near(save_seconds=0.0)
    assert Deadline(1.0, 0).near(save_seconds=5.5)


def test_a_process_knows_its_age() -> None:
    code = (
        "import time; from data.process import process_age; time.sleep(0.5); print(process_age())"
    )
    began = time.monotonic()
    told = float(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout)
    assert 0.5 <= told <= time.monotonic() - began
    assert process_age() > told


def test_a_run_out_of_time_saves_in_time_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of a second and a checkpoint of as much: at the limit itself it would be too late."""
    write_latents(tmp_path / "latents")
    update, write = Engine.update, Prefix.write

    def slow_update(engine: Engine, *args: object) -> dict[str, float]:
        time.sleep(1.0)
        return update(engine, *args)  # type: ignore[arg-type]

    def slow_write(prefix: Prefix, name: str, content: bytes | memoryview) -> None:
        if name == "commit.json":
            time.sleep(1.0)
        write(prefix, name, content)

    begins: list[float] = []

    def age_of_4() -> float:
        begins.append(time.monotonic() - 4.0)
        return 4.0

    with monkeypatch.context() as patch:
        patch.setattr("training.stop.process_age", age_of_4)
        patch.setattr(Engine, "update", slow_update)
        patch.setattr(Prefix, "write", slow_write)
        settings = ("train.samples=800000", "cluster.minutes=0.2", "checkpoint.every_samples=8")
        with pytest.raises(Preempted, match="checkpoint saved"):
            train_small(tmp_path / "latents", tmp_path / "run", *settings)
        assert time.monotonic() - begins[0] < 12.0
    seen = checkpoint_of(tmp_path / "run").progress.samples_seen
    assert 0 < seen < 800000
    train_small(tmp_path / "latents", tmp_path / "run", f"train.samples={seen + 8}")
    assert checkpoint_of(tmp_path / "run").progress.samples_seen == seen + 8


def test_a_run_without_time_for_a_step_does_not_ask_to_be_started_again(tmp_path: Path) -> None:
    write_latents(tmp_path / "latents")
    settings = ("train.samples=800", "cluster.minutes=0.05")  # less than this process is old
    with pytest.raises(RunError, match=r"cluster.minutes=0\.05: they are over"):
        train_small(tmp_path / "latents", tmp_path / "run", *settings)
