"""Checkpoints are written while training goes on, one at a time, and failures are heard of."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file

from conf.errors import RunError
from data.storage import Prefix, open_prefix
from tests.helpers.commands import wait_until
from tests.helpers.engines import save_now
from tests.helpers.latents import assert_equal
from tests.helpers.processes import kill_process, start_process
from tests.helpers.small_engine import average, small_engine, step
from training.engine.checkpoint import Progress, latest_checkpoint, require_checkpoint
from training.engine.fragments import Fragment
from training.engine.pieces import EMA, pieces_of
from training.engine.retention import Keep
from training.engine.saving import Saver
from training.engine.staging import StagedFile, stage
from training.engine.strategy import Engine


@pytest.fixture
def saver(out: Prefix, engine: Engine) -> Iterator[Saver]:
    with closing(Saver(out, engine, Keep(9))) as made:
        yield made


class SlowStore:
    """Notes what is written, and holds back until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()
        write = Prefix.write

        def slow(prefix: Prefix, name: str, content: bytes | memoryview) -> None:
            self.begun.set()
            assert self.go_on.wait(20)
            write(prefix, name, content)
            self.written.append(f"{prefix.root.rpartition('/')[2]}/{name}")

        monkeypatch.setattr(Prefix, "write", slow)


def test_what_training_does_while_it_is_written_does_not_change_it(
    engine: Engine, out: Prefix, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {name: value.clone() for name, value in engine.module.state_dict().items()}
    store = SlowStore(monkeypatch)
    saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(4, 1))
    assert store.begun.wait(20)
    step(engine)
    assert not torch.equal(engine.module.state_dict()["0.weight"], wanted["0.weight"])
    assert store.written == []  # it returned, and a step was made, with nothing written
    store.go_on.set()
    saver.finish()
    assert_equal(require_checkpoint(out).weights(), wanted)


def test_one_is_committed_before_the_next_begins(
    engine: Engine, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore(monkeypatch)
    saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(4, 1))
    waits = 0

    def go_on_after_three() -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            store.go_on.set()

    saver.on_wait = go_on_after_three
    saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(8, 2))
    assert waits >= 3
    first = "00000001/commit.json"
    assert first in store.written
    saver.finish()
    steps = [name for name in store.written if not name.startswith("run/")]
    assert [name[:8] for name in steps] == ["00000001"] * 4 + ["00000002"] * 4
    assert steps[3] == first  # last of its own


def test_a_step_waits_for_the_copy_of_what_it_changes(
    engine: Engine, out: Prefix, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {name: value.clone() for name, value in engine.module.state_dict().items()}
    copying, go_on = threading.Event(), threading.Event()

    def slowly(*given: object) -> None:
        copying.set()
        assert go_on.wait(20)
        stage(*given)

    monkeypatch.setattr("training.engine.saving.stage", slowly)
    saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(4, 1))
    assert copying.wait(20)
    stepping = threading.Thread(target=step, args=(engine,))
    stepping.start()
    stepping.join(0.5)
    assert stepping.is_alive()
    assert_equal(engine.module.state_dict(), wanted)
    go_on.set()
    stepping.join(20)
    saver.finish()
    assert any(not torch.equal(value, wanted[n]) for n, value in engine.module.state_dict().items())
    assert_equal(require_checkpoint(out).weights(), wanted)
    assert saver.stalled > 0


def test_a_copy_that_fails_holds_no_step_and_ends_the_run(
    engine: Engine, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*given: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("training.engine.saving.stage", failing)
    saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(4, 1))
    step(engine)
    assert saver.failed
    with pytest.raises(RunError, match="no room"):
        saver.finish()


def test_what_is_written_before_the_commit(
    engine: Engine, out: Prefix, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[list[str]] = []
    saver.save(
        pieces_of(engine, {EMA: average(engine)}),
        Progress(4, 1),
        lambda: there.append(out.names("checkpoints/00000001")),
    )
    saver.finish()
    names = ["ema-00000.safetensors", "model-00000.safetensors", "optimizer-00000.safetensors"]
    assert there == [names]
    assert out.names("checkpoints/00000001") == ["commit.json", *names]


@pytest.mark.parametrize("name", ["model-", "optimizer-", "commit.json"])
def test_a_store_that_fails_ends_the_run_and_commits_nothing(
    engine: Engine, out: Prefix, saver: Saver, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(4, 1))
    saver.finish()
    write = Prefix.write

    def failing(self: Prefix, file: str, content: bytes | memoryview) -> None:
        if file.startswith(name):
            raise OSError("the disk is on fire")
        write(self, file, content)

    monkeypatch.setattr(Prefix, "write", failing)
    saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(8, 2))
    while not saver.failed:
        pass
    with pytest.raises(RunError, match=r"by rank 0 \(the disk is on fire\); the one before it"):
        saver.finish()
    monkeypatch.undo()
    checkpoint = latest_checkpoint(out)
    assert checkpoint is not None
    assert checkpoint.progress.updates == 1


def test_old_checkpoints_that_cannot_be_removed_end_nothing(
    engine: Engine,
    out: Prefix,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The new one is whole, and that is what counts."""
    save_now(out, engine, average(engine), Progress(4, 1))
    remove, committed = Prefix.remove, []

    def failing(self: Prefix, name: str) -> None:
        if name.endswith("00000001"):
            raise PermissionError("not yours")
        remove(self, name)

    monkeypatch.setattr(Prefix, "remove", failing)
    with closing(Saver(out, engine, Keep(1))) as saver:
        saver.on_commit = lambda step, record: committed.append(step)
        saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(8, 2))
        saver.finish()
        assert not saver.failed
    assert committed == ["00000002"]
    assert "old checkpoints could not be removed (not yours); going on" in capsys.readouterr().out
    assert require_checkpoint(out).progress.updates == 2
    monkeypatch.undo()
    save_now(out, engine, average(engine), Progress(12, 3))
    assert out.names("checkpoints") == ["00000003"]


def test_a_disk_that_takes_nothing_more_is_told_from_a_slow_one(
    engine: Engine, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, full = Prefix.write, threading.Event()

    def slow(self: Prefix, name: str, content: bytes | memoryview) -> None:
        while name == "ema-00000.safetensors" and full.is_set():
            time.sleep(0.1)
        for _ in range(4 if name.startswith("model-") else 0):  # pieces of a large file
            time.sleep(0.2)
            self.on_piece()
        write(self, name, content)

    monkeypatch.setattr(Prefix, "write", slow)
    saver.hang_seconds = 0.5
    saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(4, 1))
    saver.finish()
    full.set()
    saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(8, 2))
    try:
        with pytest.raises(RunError, match=r"no progress .* for 0\.5 s: rank 0 still writes ema-"):
            saver.finish()
    finally:
        full.clear()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_is_json_whatever_was_measured(
    engine: Engine, out: Prefix, saver: Saver, value: float
) -> None:
    saver.val_loss, saver.validation = value, "v"
    saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(4, 1))
    saver.finish()
    json.loads(out.read("checkpoints/00000001/commit.json"), parse_constant=pytest.fail)
    assert require_checkpoint(out).val_loss is None


def test_a_failure_is_told_by_the_next_save_at_the_latest(
    engine: Engine, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Prefix, file: str, content: bytes | memoryview) -> None:
        raise OSError("gone")

    monkeypatch.setattr(Prefix, "write", failing)
    saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(4, 1))
    with pytest.raises(RunError, match="gone"):
        saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(8, 2))


def test_what_an_attempt_left_behind_is_not_taken_and_goes(
    engine: Engine, out: Prefix, saver: Saver
) -> None:
    folder = out / "checkpoints/00000001"
    for name in ("model-00007.safetensors", "record-0123-00001.json", ".model.partial"):
        folder.write(name, b"of before")
    saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(4, 1))
    saver.finish()
    assert "of before" not in str([folder.read(name) for name in folder.names()])
    assert len(folder.names()) == 4


def test_killed_in_the_middle_of_a_write_a_run_goes_on_from_the_one_before(
    tmp_path: Path,
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "-m", "tests.helpers.half_saved", str(run), "model-"]
    environment = {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    process = start_process(command, log, environment)
    try:
        wait_until(lambda: _tells(log, "half is there"), process, log, timeout=120)
        before = log.read_text().count("trained on")
        wait_until(lambda: log.read_text().count("trained on") > before + 3, process, log, 60)
    finally:
        kill_process(process)
    out = open_prefix(str(run), "out")
    assert out.names("checkpoints") == ["00000001", "00000002"]
    assert require_checkpoint(out).progress.updates == 1
    engine = small_engine(seed=1)
    step(engine)
    save_now(out, engine, average(engine), Progress(8, 2))
    engine.close()
    checkpoint = require_checkpoint(out)
    assert checkpoint.progress.updates == 2
    assert_equal(checkpoint.weights(), engine.module.state_dict())
    assert out.names("checkpoints") == ["00000002"]


def _tells(log: Path, text: str) -> bool:
    return log.exists() and text in log.read_text()


# --- staging -----------------------------------------------------------------------------------


def pieces(make: Callable[..., torch.Tensor]) -> list[tuple[Fragment, torch.Tensor]]:
    shapes = {"bytes": (3, torch.uint8), "halves": (5, torch.bfloat16), "numbers": (2, torch.float)}
    return [(Fragment(x, "values", 0), make(n).to(dtype)) for x, (n, dtype) in shapes.items()]


def test_a_staged_file_is_what_safetensors_reads_for_any_number_format(tmp_path: Path) -> None:
    file, wanted = StagedFile(pinned=False), pieces(torch.arange)
    file.stage(wanted)
    (tmp_path / "file").write_bytes(file.content())
    found = load_file(tmp_path / "file")
    assert_equal(found, {str(place): tensor for place, tensor in wanted})
    assert {name: x.dtype for name, x in found.items()} == {str(p): x.dtype for p, x in wanted}


def test_memory_is_kept_from_one_checkpoint_to_the_next_and_no_longer_than_it_fits() -> None:
    file = StagedFile(pinned=False)
    file.stage(pieces(torch.zeros))
    first = file.content()
    file.stage(pieces(torch.ones))
    assert all(bool(tensor.all()) for tensor in load(bytes(first)).values())
    assert file.content().obj.ctypes.data == first.obj.ctypes.data  # type: ignore[attr-defined]
    file.stage(pieces(torch.ones)[:2])
    assert len(load(bytes(file.content()))) == 2


def test_a_rank_without_a_piece_of_a_kind_writes_an_empty_file() -> None:
    file = StagedFile(pinned=False)
    file.stage([])
    assert load(bytes(file.content())) == {}
