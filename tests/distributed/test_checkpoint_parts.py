"""Ranks write their parts beside each other, and a checkpoint is there when all have."""

import json
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist
from safetensors.torch import load_file

from conf.errors import RunError
from data.storage import Prefix, open_prefix
from tests.helpers.engines import save_now
from tests.helpers.latents import assert_equal
from tests.helpers.ranks import run_ranks
from tests.helpers.small_engine import average, small_engine, step
from training.engine.checkpoint import Progress, file_name, require_checkpoint
from training.engine.commit import COMMIT
from training.engine.pieces import EMA, MODEL, OPTIMIZER, pieces_of
from training.engine.retention import Keep
from training.engine.saving import Saver
from training.engine.strategy import Engine

HANG = 1.0  # seconds
WHOLE, SLOW, FAILED = (f"{updates:08d}" for updates in (1, 2, 3))


def save_in_turn(folder: str) -> dict[str, Any]:
    """For `run_ranks`: a checkpoint, and three of which rank 1 is late with, cannot, and hangs."""
    with mock.patch.object(dist, "destroy_process_group"):
        engine = small_engine(seed=0, kind="ddp")
        step(engine)
        out = open_prefix(folder, "out")
        save_now(out, engine, average(engine), Progress(4, 1), Keep(9))
        facts: dict[str, Any] = {"weights": dict(engine.module.state_dict())}
        _save_late(out, engine, facts)
        _save_in_vain(out, engine, facts)
        _save_for_ever(out, engine, facts)
        engine.close()
    return facts


def _save_late(out: Prefix, engine: Engine, facts: dict[str, Any]) -> None:
    """Rank 1 writes when rank 0 has long written, beside what looks like rank 1's record."""
    folder, write = out / f"checkpoints/{SLOW}", Prefix.write
    if engine.world.main:
        stale = {file_name(MODEL, 1): {"bytes": 7, "sha256": "0" * 64}}
        folder.write("record-0123456789abcdef-00001.json", json.dumps(stale).encode())
        folder.write(file_name(MODEL, 1), b"of then")
    engine.gather(None)

    def late(self: Prefix, name: str, content: bytes | memoryview) -> None:
        if name == file_name(MODEL, 1):
            while not folder.exists(file_name(OPTIMIZER, 0)):
                time.sleep(0.01)
            time.sleep(0.3)  # several looks of rank 0 for records
            facts["committed early"] = folder.exists(COMMIT)
        write(self, name, content)

    with mock.patch.object(Prefix, "write", late):
        save_now(out, engine, average(engine), Progress(8, 2), Keep(9))
    facts["committed after all"] = folder.exists(COMMIT)


def _save_in_vain(out: Prefix, engine: Engine, facts: dict[str, Any]) -> None:
    write = Prefix.write

    def failing(self: Prefix, name: str, content: bytes | memoryview) -> None:
        if name == file_name(EMA, 1):
            raise OSError("rank 1's disk is full")
        write(self, name, content)

    with mock.patch.object(Prefix, "write", failing):
        began = time.monotonic()
        try:
            save_now(out, engine, average(engine), Progress(12, 3), Keep(9))
        except RunError as error:
            facts["told"] = str(error)
        facts["seconds"] = time.monotonic() - began


def _save_for_ever(out: Prefix, engine: Engine, facts: dict[str, Any]) -> None:
    """Rank 1's disk takes no more; each rank's own write before that takes most of the limit."""
    write = Prefix.write

    def hanging(self: Prefix, name: str, content: bytes | memoryview) -> None:
        if name == file_name(EMA, 1):
            threading.Event().wait()
        time.sleep(0.7 * HANG)
        write(self, name, content)

    with mock.patch.object(Prefix, "write", hanging), closing(Saver(out, engine, Keep(9))) as saver:
        saver.hang_seconds = HANG
        saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(16, 4))
        try:
            saver.finish()
        except RunError as error:
            facts["hung"] = str(error)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A run's folder, and what two ranks tell of it."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run_ranks(save_in_turn, 2, str(folder))


Run = tuple[Path, list[dict[str, Any]]]


def test_each_rank_writes_half_of_what_both_hold(run: Run) -> None:
    folder, _ = run
    for kind in (MODEL, EMA, OPTIMIZER):
        held = [
            sum(x.numel() for x in load_file(folder / "checkpoints" / WHOLE / name).values())
            for name in (file_name(kind, 0), file_name(kind, 1))
        ]
        every = 122 * (2 if kind == OPTIMIZER else 1)  # 57 and 65
        assert sum(held) == every
        assert abs(held[0] - held[1]) < 0.3 * every  # whole rows: three and five do not halve


def test_a_checkpoint_waits_for_the_slowest_rank_and_takes_no_record_of_before(run: Run) -> None:
    folder, facts = run
    assert facts[1]["committed early"] is False
    assert all(fact["committed after all"] for fact in facts)
    assert len(list((folder / "checkpoints" / SLOW).iterdir())) == 7  # no record is left


def test_a_rank_that_cannot_write_ends_all_and_no_checkpoint_comes_of_it(run: Run) -> None:
    folder, facts = run
    for fact in facts:
        assert "could not be saved by rank 1 (rank 1's disk is full)" in fact["told"]
        assert fact["seconds"] < 8  # rank 0 does not wait for what will not come
    assert not (folder / "checkpoints" / FAILED / COMMIT).exists()
    checkpoint = require_checkpoint(open_prefix(str(folder), "out"))
    assert checkpoint.progress.updates == 2
    assert_equal(checkpoint.weights(), facts[0]["weights"])


def test_a_rank_whose_write_never_ends_is_named_by_all(run: Run) -> None:
    _, facts = run
    lines = {fact["hung"] for fact in facts}
    (line,) = lines
    assert f"no progress with a checkpoint for {HANG:g} s: rank 1 still writes" in line
    assert f"{file_name(EMA, 1)};" in line and "rank 0" not in line
