"""No change of `commit.json` goes unseen."""

import json
from typing import Any

import pytest

from data.manifest import canonical_json, sha256
from data.storage import Prefix
from tests.helpers.engines import save_now
from tests.helpers.small_engine import average
from training.engine.checkpoint import Progress, latest_checkpoint, read_checkpoint
from training.engine.commit import COMMIT, FIELDS, FORMAT, BrokenCheckpoint, seal, unseal
from training.engine.retention import Keep
from training.engine.strategy import Engine
from training.loss_scale import LossScale

RECORD: dict[str, Any] = {
    "files": {"model-00000.safetensors": {"bytes": 7, "sha256": "0" * 64}},
    "shapes": {"a.weight": [2, 3], "b": []},
    "samples_seen": 800,
    "updates": 100,
    "skipped": 1,
    "overflows": 1,
    "loss_scale": {"factor": 65536.0, "age": 3},
    "val_loss": 0.25,
    "validation": "ab",
    "tracker": "a1",
}


def test_what_is_sealed_comes_back() -> None:
    assert tuple(RECORD) == FIELDS
    assert unseal(seal(RECORD)) == RECORD


def test_a_flip_of_any_bit_is_refused_or_changes_nothing() -> None:
    """Of spaces and line breaks some mean the same."""
    content = seal(RECORD)
    harmless = 0
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            try:
                assert unseal(bytes(flipped)) == RECORD, (place, bit)
            except BrokenCheckpoint:
                continue
            assert chr(content[place]).isspace(), (place, bit)
            harmless += 1
    assert harmless < len(content) / 10


def test_a_record_that_is_cut_anywhere_is_refused() -> None:
    content = seal(RECORD)
    for length in range(len(content)):
        with pytest.raises(BrokenCheckpoint):
            unseal(content[:length])


@pytest.mark.parametrize("content", [b"[]", b"7", b"null", b"\xff", b"[" * 100_000, b"{}"])
def test_what_is_no_record_is_refused(content: bytes) -> None:
    with pytest.raises(BrokenCheckpoint, match=COMMIT):
        unseal(content)


def test_a_record_of_other_code_is_named() -> None:
    """With a hash that fits: it was written so."""
    other = {"format": FORMAT + 1, **RECORD}
    lacking = {"format": FORMAT, **{k: v for k, v in RECORD.items() if k != "overflows"}}
    for record, line in ((other, "not of format 1"), (lacking, "lacks the field overflows")):
        content = json.dumps({**record, "sha256": sha256(canonical_json(record))}).encode()
        with pytest.raises(BrokenCheckpoint, match=line):
            unseal(content)


def test_a_run_falls_back_from_a_digit_that_was_flipped(
    engine: Engine, out: Prefix, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: the other ranks, which see the same, keep silent."""
    scale = LossScale(512.0, 7)
    for updates in (1, 2):
        progress = Progress(8 * updates, updates, loss_scale=scale)
        save_now(out, engine, average(engine), progress, Keep(2))
    assert read_checkpoint(out, "00000002").progress == Progress(16, 2, loss_scale=scale)
    name = f"checkpoints/00000002/{COMMIT}"
    out.write(name, out.read(name).replace(b'"samples_seen": 16', b'"samples_seen": 17'))
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        checkpoint = latest_checkpoint(out)
        assert checkpoint is not None and checkpoint.progress.updates == 1
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "broken" in x]
    assert f"checkpoint 00000002 is broken ({COMMIT} is not what was committed)" in line
