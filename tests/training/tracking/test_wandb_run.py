"""The W&B run: read back record by record, resumed, and with a host that never answers."""

import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import wandb

from conf.enums import TrackingKind
from conf.errors import UserError
from conf.groups import TrackingConfig
from data.storage import open_prefix
from tests.helpers.blackhole import blackhole
from tests.helpers.wandb_file import read_history, read_records, read_run_ids
from training.track import Tracker
from training.tracking.behind import ROOM
from training.tracking.files import METRICS, read_metrics
from training.tracking.sink import Histogram, Saved
from training.tracking.wandb_run import WandbSink, wandb_key

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
OFFLINE = TrackingConfig(kind=TrackingKind.offline)
KEY = "c0ffee" * 8
LINES = ROOM + 200  # more than wait for an answer
FILES = {"model-00000.safetensors": {"bytes": 3, "sha256": "ab" * 32}}
COMMIT = {"samples_seen": 20, "updates": 2, "val_loss": None, "files": FILES}


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()  # which has read the environment before


def tracked(folder: Path, start: int, known: str | None = None) -> Tracker:
    return Tracker(open_prefix(str(folder), "out"), OFFLINE, {"seed": 1}, start, True, known)


def whole_history(folder: Path) -> list[dict[str, float]]:
    """What W&B's files hold, as metrics.jsonl has it."""
    return sorted(read_history(folder), key=lambda line: line["samples_seen"])


def test_the_offline_files_hold_what_metrics_hold_record_by_record(tmp_path: Path) -> None:
    """Over a process that died after its checkpoint at 200, and one that went on from there."""
    chance = random.Random(0)
    values = {
        place: {"loss": chance.random(), "lr": chance.random()} for place in range(10, 410, 10)
    }
    code = (
        "from tests.training.tracking.test_wandb_run import *\n"
        "from training.tracking.offline_file import last_step\n"
        "values = {int(place): one for place, one in json.loads(sys.argv[2]).items()}\n"
        "tracker = tracked(Path(sys.argv[1]), 0)\n"
        "for place in range(10, 310, 10):\n"
        "    tracker.log(place, values[place])\n"
        "    if place == 200:\n"
        "        tracker.writer()()\n"
        "while 280 > (last_step(Path(sys.argv[1]), tracker.wandb_id) or 0):\n"
        "    time.sleep(0.01)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), json.dumps(values)]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    died = [line["samples_seen"] for line in read_history(tmp_path / "wandb")]
    assert died[-1] in (280, 290, 300)  # the checkpoint is at 200, and W&B knows more
    tracker = tracked(tmp_path, 200)
    for place in range(210, 410, 10):
        tracker.log(place, values[place])
    tracker.close()
    lines = read_metrics(open_prefix(str(tmp_path), "out"))
    assert lines == [{"samples_seen": place, **one} for place, one in values.items()]
    assert whole_history(tmp_path / "wandb") == lines
    assert len(read_run_ids(tmp_path / "wandb")) == 1


def test_a_line_that_a_killed_process_kept_from_wandb_is_sent_by_the_next(tmp_path: Path) -> None:
    first = tracked(tmp_path, 0)
    first.log(10, {"loss": 1.0})
    first.close()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"samples_seen": 20, "loss": 0.5}\n')
    time.sleep(1.1)  # W&B names a folder after the second
    second = tracked(tmp_path, 20)
    second.log(30, {"loss": 0.25})
    second.close()
    assert [line["loss"] for line in whole_history(tmp_path / "wandb")] == [1.0, 0.5, 0.25]


def test_a_run_that_goes_on_elsewhere_is_the_same_wandb_run(tmp_path: Path) -> None:
    """Only its checkpoints and metrics came along; what W&B had is left to the first machine."""
    first = tracked(tmp_path / "a", 0)
    first.log(10, {"loss": 1.0})
    first.close()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / METRICS).write_bytes((tmp_path / "a" / METRICS).read_bytes())
    second = tracked(tmp_path / "b", 10, known=first.wandb_id)
    second.log(20, {"loss": 0.5})
    second.close()
    assert second.wandb_id == first.wandb_id
    assert read_run_ids(tmp_path) == {first.wandb_id}
    assert [line["samples_seen"] for line in whole_history(tmp_path)] == [10, 20]


def test_checkpoints_and_alerts_are_records_of_the_run(tmp_path: Path) -> None:
    tracker = tracked(tmp_path, 0)
    tracker.saved(Saved("00000002", "s3://bucket/run/checkpoints/00000002", COMMIT))
    tracker.alert("stall", "no progress for 300 s")
    tracker.close()
    (file,) = (tmp_path / "wandb").rglob("*.wandb")
    records = {record.WhichOneof("record_type"): record for record in read_records(file)}
    assert records["alert"].alert.title == "stall"
    artifact = records["artifact"].artifact
    assert json.loads(artifact.metadata)["files"] == FILES
    (entry,) = artifact.manifest.contents
    assert entry.ref == "s3://bucket/run/checkpoints/00000002/model-00000.safetensors"
    assert not entry.local_path  # nothing is copied


def test_with_a_host_that_never_answers_nobody_waits_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    config = TrackingConfig(kind=TrackingKind.online, key_file=str(key), wandb_seconds=3)
    with blackhole() as hole:
        monkeypatch.setenv("WANDB_BASE_URL", hole.url)
        run = tmp_path / "run"
        began = time.monotonic()
        tracker = Tracker(open_prefix(str(run), "out"), config, {}, 0, main=True)
        for place in range(1, LINES + 1):
            tracker.log(place, {"loss": 1 / place})
        assert (
            "not take the run" not in capsys.readouterr().out
        )  # it is still being waited for, by nobody
        tracker.close()
        assert time.monotonic() - began < 60
        assert base64.b64encode(f"api:{KEY}".encode()) in hole.heard  # the key of the file
    told = capsys.readouterr().out
    assert told.count("W&B does not take the run") == 1
    assert "wandb sync" in told
    lines = read_metrics(open_prefix(str(run), "out"))
    assert len(lines) == LINES
    assert whole_history(run / "wandb") == lines
    (folder,) = (run / "wandb").glob("offline-run-*")
    assert str(folder) in told
    assert [
        file for file in run.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()
    ] == []


class FakeRun:
    """Answers as W&B's run does online: nothing here has a server of W&B's."""

    offline, id = False, "abc"

    def __init__(self, known_steps: int = 0) -> None:
        self.resumed, self.step = known_steps > 0, known_steps
        self.logged: list[int] = []
        self.used: list[str] = []

    def log(self, values: dict[str, float], step: int) -> None:
        assert values["samples_seen"] == step
        self.logged.append(step)

    def use_artifact(self, artifact: wandb.Artifact) -> None:
        self.used.append(artifact.name)


@pytest.mark.parametrize(
    ("known_steps", "there", "sent"),
    [
        (0, 20, [10, 20, 30]),  # it was offline until now: files that were never sent say nothing
        (0, None, [10, 20, 30]),
        (11, 20, [20, 30]),  # the server has the first, and knows better than files
        (21, None, [30]),
    ],
)
def test_online_the_server_gets_what_it_lacks(
    known_steps: int, there: int | None, sent: list[int]
) -> None:
    lines = [{"samples_seen": place, "loss": 1.0} for place in (10, 20)]
    run = FakeRun(known_steps)
    sink = WandbSink(run, there, lines, 20)
    lines.append({"samples_seen": 30, "loss": 0.5})
    for _ in range(2):
        sink.log(30, {"loss": 0.5})
    assert run.logged == sent
    sink.reads({"kind": "latents", "fingerprint": "12" * 32, "url": "s3://b/latents"})
    assert run.used == ["latents-121212121212"]


def test_a_picture_does_not_overtake_the_lines_before_it() -> None:
    """W&B leaves out a step that comes after a later one."""
    run = FakeRun()
    lines = [{"samples_seen": 10, "loss": 1.0}]
    sink = WandbSink(run, None, lines, 0)
    lines += [{"samples_seen": place, "loss": 1.0} for place in (20, 30)]  # no queue had room
    sink.show(20, "samples", np.zeros((2, 2, 3), np.uint8))
    assert run.logged == [10, 20, 20]
    sink.spread(30, {"weights": Histogram((1, 2), (0.0, 0.5, 1.0))})
    assert run.logged == [10, 20, 20, 30, 30]


def test_without_a_key_there_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="needs a W&B key, and none is set"):
        wandb_key(TrackingConfig(kind=TrackingKind.online))


@pytest.mark.parametrize(
    ("content", "wrong"), [(None, "No such file"), (b"", "holds no key"), (b"\xff", "no text")]
)
def test_a_key_file_that_holds_no_key_is_refused(
    content: bytes | None, wrong: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    config = TrackingConfig(kind=TrackingKind.online, key_file=str(tmp_path / "key"))
    with pytest.raises(UserError, match=wrong):
        wandb_key(config)


def test_offline_no_key_is_looked_for() -> None:
    assert wandb_key(TrackingConfig(kind=TrackingKind.offline, key_file="/nowhere")) is None
