import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conf.enums import TrackingKind
from conf.groups import TrackingConfig
from data.image import decode_image
from data.storage import open_prefix
from tests.helpers.wandb_file import read_history, read_run_ids
from training.track import Tracker
from training.tracking.files import METRICS, read_metrics
from training.tracking.wandb_run import start_wandb, wandb_image

OFF = TrackingConfig(kind=TrackingKind.off)


def track(folder: Path, config: TrackingConfig, start: int, places: list[int]) -> None:
    tracker = Tracker(open_prefix(str(folder), "out"), config, {"seed": 1}, start, main=True)
    for place in places:
        tracker.log(place, {"loss": place / 100})
    tracker.close()


def test_lines_of_a_process_that_died_are_not_there_twice(tmp_path: Path) -> None:
    track(tmp_path, OFF, 0, [10, 20, 30])
    track(tmp_path, OFF, 20, [30, 40])  # resumed from the checkpoint at 20
    lines = read_metrics(open_prefix(str(tmp_path), "out"))
    assert [line["samples_seen"] for line in lines] == [10, 20, 30, 40]
    assert lines[2] == {"samples_seen": 30, "loss": 0.3}


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    tracker = Tracker(open_prefix(str(tmp_path), "out"), TrackingConfig(), {}, 0, main=False)
    tracker.log(10, {"loss": 1.0})
    tracker.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_wandb_run_holds_the_same_and_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = TrackingConfig(kind=TrackingKind.offline)
    track(tmp_path, config, 0, [10, 20])
    time.sleep(1.1)  # W&B names a folder after the second
    track(tmp_path, config, 20, [30])
    history = read_history(tmp_path / "wandb")
    assert [(line["samples_seen"], line["loss"]) for line in history] == [
        (10, 0.1),
        (20, 0.2),
        (30, 0.3),
    ]
    assert len(read_run_ids(tmp_path / "wandb")) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_run_is_taken_up_while_wandb_runs_in_the_process_that_started_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B leaves its service's address in the environment, and a service keeps a killed run."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = TrackingConfig(kind=TrackingKind.offline)
    killed = start_wandb(open_prefix(str(tmp_path), "out"), config, {})
    code = (
        "from tests.training.test_track import *\n"
        "config = TrackingConfig(kind=TrackingKind.offline)\n"
        "track(Path(sys.argv[1]), config, 0, [10])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    killed.finish()
    assert done.returncode == 0, done.stderr


def test_images_keep_their_captions() -> None:
    image = wandb_image(np.zeros((4, 6, 3), np.uint8), "a red apple")
    assert image.image.size == (6, 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_picture_lies_with_the_run_and_in_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    picture = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    config = TrackingConfig(kind=TrackingKind.offline)
    out = open_prefix(str(tmp_path), "out")
    Tracker(out, OFF, {}, 0, main=False).show(20, "samples", picture)
    assert not (tmp_path / "samples").exists()  # another rank's
    tracker = Tracker(out, config, {}, 0, main=True)
    tracker.show(20, "samples", picture)
    tracker.close()
    kept = decode_image((tmp_path / "samples/000000020.png").read_bytes())
    np.testing.assert_array_equal(kept, picture)
    (media,) = (tmp_path / "wandb").rglob("media/images/*.png")
    np.testing.assert_array_equal(decode_image(media.read_bytes()), picture)


def test_a_write_that_fails_is_told_once_and_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.tracking.files.SECONDS_BETWEEN_WRITES", 0.0)
    in_the_way = tmp_path / METRICS
    tracker = Tracker(open_prefix(str(tmp_path), "out"), OFF, {}, 0, main=True)
    in_the_way.mkdir()
    limit, said, place = time.monotonic() + 60, "", 0
    while said.count("is kept in memory") < 1 or place < 20:
        tracker.log(place := place + 1, {"loss": 1.0})
        said += capsys.readouterr().out
        assert time.monotonic() < limit
        time.sleep(0.01)
    in_the_way.rmdir()
    while not in_the_way.exists():  # without a checkpoint, and without the end
        tracker.log(place := place + 1, {"loss": 1.0})
        assert time.monotonic() < limit
        time.sleep(0.01)
    tracker.close()
    assert [line["samples_seen"] for line in read_metrics(open_prefix(str(tmp_path), "out"))] == [
        *range(1, place + 1)
    ]
    assert said.count("is kept in memory") == 1
    assert "record ends here" not in said + capsys.readouterr().out
