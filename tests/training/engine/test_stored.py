"""Of a checkpoint's files what is asked for is read, and checked before."""

from pathlib import Path

import pytest
import torch

from conf.errors import RunError
from data.storage import Prefix
from tests.helpers.engines import save_now
from tests.helpers.latents import adam_moments, assert_equal
from tests.helpers.small_engine import average
from training.engine import stored
from training.engine.checkpoint import (
    Checkpoint,
    Progress,
    file_name,
    latest_checkpoint,
    require_checkpoint,
)
from training.engine.commit import BrokenCheckpoint
from training.engine.fragments import Fragment
from training.engine.pieces import EMA, MODEL, OPTIMIZER
from training.engine.strategy import Engine

NAME = "0.weight"  # (3, 2, 3, 3): 54 elements


@pytest.fixture
def saved(engine: Engine, out: Prefix) -> Checkpoint:
    save_now(out, engine, average(engine), Progress(4, 1))
    return require_checkpoint(out)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The file and the number of bytes of each read."""
    reads: list[tuple[str, int]] = []
    read_buffer = Prefix.read_buffer

    def noting(self: Prefix, name: str, start: int, length: int) -> bytes | memoryview:
        content = read_buffer(self, name, start, length)
        reads.append((name, len(content)))
        return content

    monkeypatch.setattr(Prefix, "read_buffer", noting)
    monkeypatch.setattr(Prefix, "read", None)  # which would read all of a file
    return reads


def test_a_part_of_a_tensor_takes_its_bytes_and_the_header(
    saved: Checkpoint, read: list[tuple[str, int]]
) -> None:
    wanted = adam_moments(saved)[f"{NAME}|exp_avg_sq"]
    read.clear()
    (found,) = saved.fetch(OPTIMIZER, [(Fragment(NAME, "exp_avg_sq", 10), 7)])
    assert torch.equal(found, wanted[10:17])
    assert {name for name, _ in read} == {file_name(OPTIMIZER, 0)}
    assert [size for _, size in read[:1] + read[2:]] == [8, 7 * 4]


@pytest.mark.parametrize("kind", [MODEL, EMA, OPTIMIZER])
def test_files_that_nobody_reads_may_be_damaged(
    out: Prefix, saved: Checkpoint, read: list[tuple[str, int]], kind: str
) -> None:
    """Images are made of the averages alone, and need not fetch thrice as much to be sure."""
    file = Path(saved.folder.path(file_name(kind, 0)))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    saved.check({MODEL, EMA, OPTIMIZER} - {kind})
    assert file.name not in {name for name, _ in read}
    for kinds in (None, [kind]):
        with pytest.raises(BrokenCheckpoint, match=f"{file.name} is not what was committed"):
            saved.check(kinds)


@pytest.mark.parametrize("piece", [1 << 20, 100, 8])
def test_whatever_a_file_ends_with_it_is_held_to_its_length(
    saved: Checkpoint, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(stored, "PIECE", piece)
    saved.check()
    file = Path(saved.folder.path(file_name(EMA, 0)))
    content = file.read_bytes()
    for other in (content + b"\0", content[:-1], b""):
        file.write_bytes(other)
        with pytest.raises(BrokenCheckpoint, match=file.name):
            saved.check()


def test_every_piece_and_every_tensor_is_a_sign_of_life(
    engine: Engine, out: Prefix, saved: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "PIECE", 100)
    signs = 0

    def sign() -> None:
        nonlocal signs
        signs += 1

    checkpoint = latest_checkpoint(out, on_piece=sign)
    assert checkpoint is not None
    size = sum(record["bytes"] for record in saved.files.values())
    assert size // 100 <= signs <= size // 100 + 3
    signs = 0
    assert_equal(checkpoint.weights(), engine.module.state_dict())
    assert signs == 4


def test_results_come_in_order_and_only_some_are_ahead() -> None:
    begun: list[int] = []
    taken = stored.in_order(lambda item: begun.append(item) or item, range(1000))
    assert [next(taken) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(begun) < 50
    taken.close()
    assert len(begun) < 50

    def fail(item: int) -> int:
        if item == 3:
            raise RunError("three")
        return item

    with pytest.raises(RunError, match="three"):
        list(stored.in_order(fail, range(1000)))
