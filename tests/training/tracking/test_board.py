import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from conf.enums import TrackingKind
from conf.errors import UserError
from conf.groups import MetricsConfig
from data.storage import Prefix, open_prefix
from training.track import Tracker
from training.tracking.board import FOLDER, require_board
from training.tracking.files import read_metrics
from training.tracking.sink import Histogram, Saved

BOARD = MetricsConfig(kind=TrackingKind.off, tensorboard=True)
COMMIT = {"samples_seen": 20, "updates": 2, "val_loss": None, "files": {}}


def events(out: Prefix) -> Iterator[Event]:
    """The records of the events files, oldest first: length, checksum, content, checksum."""
    for name in out.names(FOLDER):
        content, place = out.read(f"{FOLDER}/{name}"), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event()
            event.ParseFromString(content[place + 12 : place + 12 + length])
            yield event
            place += 12 + length + 4


def track(out: Prefix, start: int, places: list[int]) -> None:
    tracker = Tracker(out, BOARD, {}, start, main=True)
    for place in places:
        tracker.log(place, {"loss": place / 64, "lr": 0.5})
    tracker.show(places[-1], "samples", np.zeros((4, 6, 3), np.uint8))
    tracker.spread(places[-1], {"weights/a": Histogram((1, 2), (0.0, 1.0, 2.0))})
    tracker.saved(Saved("00000002", "/checkpoints/00000002", COMMIT))
    tracker.alert("stall", "nothing")
    tracker.close()


@pytest.mark.parametrize("where", ["disk", "store"])
def test_events_hold_what_metrics_hold(where: str, tmp_path: Path, s3_prefix: str) -> None:
    out = open_prefix(str(tmp_path) if where == "disk" else s3_prefix, "out")
    track(out, 0, [10, 20])
    found: dict[int, dict[str, float]] = {}
    kinds = set()
    for event in events(out):
        for value in event.summary.value:
            kind = value.WhichOneof("value")
            kinds.add(kind)
            if kind == "simple_value":
                found.setdefault(event.step, {})[value.tag] = value.simple_value
            if kind == "histo":
                assert list(value.histo.bucket)[:2] == [1, 2]
    lines = {line.pop("samples_seen"): line for line in read_metrics(out)}
    assert found == lines == {10: {"loss": 10 / 64, "lr": 0.5}, 20: {"loss": 20 / 64, "lr": 0.5}}
    assert kinds == {"simple_value", "image", "histo", "tensor"}


def test_a_resumed_run_has_what_came_later_purged(tmp_path: Path) -> None:
    out = open_prefix(str(tmp_path), "out")
    track(out, 0, [10, 20, 30])
    (tmp_path / FOLDER / next(iter(out.names(FOLDER)))).rename(tmp_path / FOLDER / "events.0")
    track(out, 20, [30, 40])
    starts = [event.step for event in events(out) if event.session_log.status == 1]
    assert starts == [1, 21]  # at the start too: a killed process may have left some there


def test_without_the_package_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'latent-foundry\[tensorboard\]'"):
        require_board()
