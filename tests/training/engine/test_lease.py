"""Two processes never write one run, and a dead one holds up nobody."""

import json
import os
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from conf.enums import TrackingKind
from conf.errors import Preempted, RunError
from conf.groups import TrackingConfig
from data.process import process_mark
from data.storage import Prefix, open_prefix
from tests.helpers.engines import save_now
from tests.helpers.holding import held_by_a_process
from tests.helpers.small_engine import average
from training.engine import lease
from training.engine.checkpoint import Progress, require_checkpoint
from training.engine.lease import LEASE, Holder, Lease
from training.engine.pieces import EMA, pieces_of
from training.engine.retention import Keep
from training.engine.saving import Saver
from training.engine.strategy import Engine
from training.track import Tracker
from training.tracking.files import METRICS

ELSEWHERE = Holder("token", "node7", 12, "boot-of-node7 pid:[1] 12 34")


def nothing() -> None:
    return None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a second where it is a quarter of a minute."""
    for name, seconds in (("KEPT_EVERY", 0.1), ("STALE", 1.0), ("LOOK_EVERY", 0.02)):
        monkeypatch.setattr(lease, name, seconds)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_second_process_is_refused_until_the_first_is_dead(
    request: pytest.FixtureRequest, tmp_path: Path, place: str
) -> None:
    at = str(tmp_path / "run") if place == "local" else request.getfixturevalue("s3_prefix")
    out = open_prefix(at, "out")
    with held_by_a_process(out, tmp_path / "log") as process:
        there = out.read(LEASE)
        # The one that `start_process` began, or what that one has become.
        with pytest.raises(RunError, match=rf"{at}: process {process.pid} of \S+ is training this"):
            Lease(out, nothing).__enter__()
        assert out.read(LEASE) == there
        process.kill()
        began = time.monotonic()
        while process_mark(process.pid):  # nobody has asked for its end: it is a zombie
            assert time.monotonic() - began < 10
        with Lease(out, nothing):
            assert json.loads(out.read(LEASE))["process"] == os.getpid()
        assert time.monotonic() - began < 10
    assert not out.exists(LEASE)


def test_it_is_given_back_however_the_work_ends(out: Prefix) -> None:
    with pytest.raises(ValueError), Lease(out, nothing):
        raise ValueError
    assert out.names() == []


def test_one_of_another_machine_is_watched_and_then_taken(
    out: Prefix, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out.write(LEASE, json.dumps(asdict(ELSEWHERE)).encode())
    looks = []
    began = time.monotonic()
    with Lease(out, lambda: looks.append(1)):
        assert 1.0 < time.monotonic() - began < 5
    assert looks  # so that the other ranks wait for this one
    assert "whether process 12 of node7 still trains it" in capsys.readouterr().out


def test_one_of_another_machine_that_is_kept_is_refused(out: Prefix, quick: None) -> None:
    done = threading.Event()

    def keep() -> None:
        kept = 0
        while not done.wait(0.05):
            kept += 1
            out.write(LEASE, json.dumps(asdict(replace(ELSEWHERE, kept=kept))).encode())

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        wait = time.monotonic() + 20
        while not out.exists(LEASE):
            assert time.monotonic() < wait
        with pytest.raises(RunError, match="process 12 of node7 is training this run"):
            Lease(out, nothing).__enter__()
    finally:
        done.set()
        thread.join()


def test_one_that_another_machine_gives_back_meanwhile_is_taken(out: Prefix, quick: None) -> None:
    out.write(LEASE, json.dumps(asdict(ELSEWHERE)).encode())
    removed = []

    def remove() -> None:
        out.remove(LEASE)
        removed.append(1)

    began = time.monotonic()
    with Lease(out, remove):
        assert removed
        assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("gone", [True, False])
def test_a_process_that_was_away_writes_nothing_more(
    engine: Engine, out: Prefix, quick: None, gone: bool
) -> None:
    """It was suspended, another took over, and is at work or has ended since."""
    save_now(out, engine, average(engine), Progress(4, 1))
    with Lease(out, nothing) as held:
        saver = Saver(out, engine, Keep(1))
        saver.lease = held
        out.remove(LEASE)
        if not gone:
            out.write(LEASE, json.dumps(asdict(ELSEWHERE)).encode())
        save_now(out, engine, average(engine), Progress(12, 3), Keep(9))  # of the other one
        until = time.monotonic() + 10
        while not saver.failed:  # so the loop hears of it with its next step
            assert time.monotonic() < until
        files = out.files()
        for _ in range(2):
            with pytest.raises(RunError, match=r"taken over .*/lease.json; this process has stop"):
                saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(8, 2))
        saver.close()
    assert out.files() == files  # neither its lease nor a checkpoint was touched


def test_a_takeover_is_seen_before_a_checkpoint_is_written_and_before_it_is_committed(
    engine: Engine, out: Prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever keeps the lease looks four times a minute: that may be too late."""
    write = Prefix.write
    taken = json.dumps(asdict(ELSEWHERE)).encode()
    with Lease(out, nothing) as held:
        saver = Saver(out, engine, Keep(1))
        saver.lease = held

        def overtaken(self: Prefix, name: str, content: bytes | memoryview) -> None:
            write(self, name, content)
            if name.startswith("optimizer-"):
                write(out, LEASE, taken)

        monkeypatch.setattr(Prefix, "write", overtaken)
        saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(4, 1))
        with pytest.raises(RunError, match="process 12 of node7 has taken over"):
            saver.finish()
        monkeypatch.undo()
        assert "commit.json" not in out.names("checkpoints/00000001")
        saver.close()
        save_now(out, engine, average(engine), Progress(8, 2))
        before = out.files()
        held._lost = None
        other = Saver(out, engine, Keep(1))
        other.lease = held
        other.save(pieces_of(engine, {EMA: average(engine)}), Progress(12, 3))
        with pytest.raises(RunError, match="process 12 of node7 has taken over"):
            other.finish()
        assert out.files() == before
    assert require_checkpoint(out).progress.updates == 2
    assert out.read(LEASE) == taken


def test_a_process_that_lost_its_lease_leaves_the_metrics_alone(tmp_path: Path) -> None:
    out = open_prefix(str(tmp_path), "out")
    theirs = json.dumps(asdict(ELSEWHERE)).encode()
    with Lease(out, nothing) as own:
        tracker = Tracker(out, TrackingConfig(kind=TrackingKind.off), {}, 0, main=True)
        tracker.require(own.require)
        tracker.log(8, {"loss": 1.0})
        tracker.writer()()
        assert b"8" in out.read(METRICS)
        out.write(LEASE, theirs)
        out.write(METRICS, b"")
        tracker.log(16, {"loss": 1.0})
        with pytest.raises(RunError, match="process 12 of node7 has taken over"):
            tracker.close()
    assert out.read(METRICS) == b""
    assert out.read(LEASE) == theirs


def test_a_lease_that_cannot_be_given_back_does_not_change_how_a_run_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = open_prefix(str(tmp_path / "run"), "out")
    with pytest.raises(Preempted, match="saved"), Lease(out, nothing):
        (tmp_path / "run" / LEASE).unlink()
        (tmp_path / "run" / LEASE).mkdir()  # neither can be read
        raise Preempted("saved")
    assert f"{LEASE} could not be given back" in capsys.readouterr().out
