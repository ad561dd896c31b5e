"""A checkpoint is whole or does not exist, whatever happens to its files."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from conf.enums import EngineKind, Precision
from conf.errors import RunError, UserError
from conf.training import EngineConfig, OptimizerConfig
from data.storage import Prefix, open_prefix
from tests.helpers.engines import forget_engine
from tests.helpers.latents import adam_moments, assert_equal
from training.engine.build import build_engine
from training.engine.checkpoint import (
    COMMIT,
    EMA,
    MODEL,
    Progress,
    checkpoint_steps,
    first_of_each,
    latest_checkpoint,
    require_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from training.engine.strategy import Engine

OPTIMIZER = "optimizer-00000.safetensors"
FP32 = EngineConfig(kind=EngineKind.single, precision=Precision.fp32)
FILES = (OPTIMIZER, MODEL, EMA)


def build(seed: int) -> Engine:
    forget_engine()
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5))
    config = OptimizerConfig(lr=0.1)
    return build_engine(FP32, config, network, 4, 1)


def step(engine: Engine) -> None:
    batch = torch.randn(4, 2, 4, 4)
    engine.update([batch], lambda images: {"loss": engine.model(images).square().mean(1)}, lr=0.1)


def average(engine: Engine) -> list[torch.Tensor]:
    return [parameter.detach() * 0.5 for parameter in engine.module.parameters()]


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = build(seed=0)
    step(made)
    yield made
    made.close()


@pytest.fixture
def out(tmp_path: Path) -> Prefix:
    return open_prefix(str(tmp_path / "run"), "out")


def save(out: Prefix, engine: Engine, updates: int, keep_last: int = 2) -> Path:
    """Saves a checkpoint and returns its folder."""
    progress = Progress(samples_seen=4 * updates, updates=updates)
    save_checkpoint(out, engine, average(engine), progress, keep_last)
    return Path(out.path(f"checkpoints/{updates:08d}"))


def updates_of(out: Prefix) -> int | None:
    checkpoint = latest_checkpoint(out)
    return checkpoint.progress.updates if checkpoint else None


def test_what_was_saved_comes_back(engine: Engine, out: Prefix) -> None:
    save(out, engine, 7)
    checkpoint = latest_checkpoint(out)
    assert checkpoint is not None
    assert checkpoint.progress == Progress(28, 7)
    assert_equal(checkpoint.tensors(MODEL), engine.module.state_dict())
    names = [name for name, _ in engine.module.named_parameters()]
    assert_equal(checkpoint.tensors(EMA), dict(zip(names, average(engine), strict=True)))
    other = build(seed=1)
    restore_optimizer(other, checkpoint)
    for name, parameter in other.module.named_parameters():
        state = other.optimizer.state[parameter]
        assert int(state["step"]) == 7
        for kind in ("exp_avg", "exp_avg_sq"):
            wanted = engine.optimizer.state[engine.module.get_parameter(name)][kind]
            assert torch.equal(state[kind], wanted)
            assert torch.equal(adam_moments(checkpoint)[f"{name}|{kind}"], wanted.flatten())


def test_commit_lists_every_file_with_its_hash(engine: Engine, out: Prefix) -> None:
    import hashlib

    folder = save(out, engine, 1)
    listed = json.loads((folder / COMMIT).read_text())["files"]
    assert sorted(listed) == sorted(FILES)
    for name, record in listed.items():
        content = (folder / name).read_bytes()
        assert record == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_damaged_file_sends_back_to_the_checkpoint_before(
    engine: Engine, out: Prefix, capsys: pytest.CaptureFixture[str], name: str, damage
) -> None:
    save(out, engine, 1)
    damage(save(out, engine, 2) / name)
    assert updates_of(out) == 1
    said = capsys.readouterr().out
    assert "checkpoint 00000002 is broken" in said
    assert name in said
    assert "falling back" in said


def test_a_damaged_commit_sends_back_too(
    engine: Engine, out: Prefix, capsys: pytest.CaptureFixture[str]
) -> None:
    save(out, engine, 1)
    truncate(save(out, engine, 2) / COMMIT)
    assert updates_of(out) == 1
    assert "checkpoint 00000002 is broken" in capsys.readouterr().out


def test_without_commit_a_checkpoint_does_not_exist(
    engine: Engine, out: Prefix, capsys: pytest.CaptureFixture[str]
) -> None:
    save(out, engine, 1)
    (save(out, engine, 2) / COMMIT).unlink()
    assert updates_of(out) == 1
    assert checkpoint_steps(out) == ["00000001"]
    assert "broken" not in capsys.readouterr().out


def test_a_run_with_no_whole_checkpoint_is_refused_by_name(engine: Engine, out: Prefix) -> None:
    assert updates_of(out) is None
    (save(out, engine, 1) / COMMIT).unlink()
    assert updates_of(out) is None
    with pytest.raises(UserError, match="holds no checkpoint"):
        require_checkpoint(out)


def test_a_run_whose_checkpoints_are_all_broken_does_not_start_again(
    engine: Engine, out: Prefix
) -> None:
    for updates in (1, 2):
        truncate(save(out, engine, updates) / FILES[0])
    with pytest.raises(RunError, match="none of its 2 checkpoints is whole"):
        latest_checkpoint(out)


def test_a_new_checkpoint_outlives_a_broken_one_of_later(engine: Engine, out: Prefix) -> None:
    save(out, engine, 1)
    truncate(save(out, engine, 9) / FILES[0])
    save(out, engine, 2, keep_last=1)  # the run fell back to 1 and went on
    assert updates_of(out) == 2
    assert out.names("checkpoints") == ["00000002"]


def test_only_the_last_ones_are_kept(engine: Engine, out: Prefix) -> None:
    for updates in (1, 2, 3, 4):
        save(out, engine, updates, keep_last=3)
    assert out.names("checkpoints") == ["00000002", "00000003", "00000004"]
    assert out.read("latest") == b"00000004"


def test_the_first_after_every_so_many_samples_is_kept_for_good(
    engine: Engine, out: Prefix
) -> None:
    for updates in range(1, 9):  # of four samples each
        progress = Progress(samples_seen=4 * updates, updates=updates)
        save_checkpoint(out, engine, average(engine), progress, keep_last=1, keep_every=10)
    # 12 is the first after 10, 20 and 32 those after 20 and 30.
    assert out.names("checkpoints") == ["00000003", "00000005", "00000008"]


def test_one_checkpoint_may_be_the_first_after_several_multiples() -> None:
    assert first_of_each({"a": 4, "b": 25, "c": 26, "d": 31}, 10) == ["b", "d"]
    assert first_of_each({}, 10) == []


def test_what_a_killed_process_left_of_a_checkpoint_is_removed(engine: Engine, out: Prefix) -> None:
    (save(out, engine, 1) / COMMIT).unlink()
    for updates in (2, 3, 4):
        save(out, engine, updates, keep_last=2)
    assert out.names("checkpoints") == ["00000003", "00000004"]


class Killed(BaseException):
    """What a test raises in the place of a kill."""


@pytest.mark.parametrize("written", range(len(FILES) + 1))
def test_killed_between_two_files_the_checkpoint_before_is_used(
    engine: Engine, out: Prefix, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    save(out, engine, 1)
    write, count = Prefix.write, 0

    def dying(self: Prefix, name: str, content: bytes) -> None:
        nonlocal count
        if count == written:
            raise Killed
        count += 1
        write(self, name, content)

    monkeypatch.setattr(Prefix, "write", dying)
    with pytest.raises(Killed):
        save(out, engine, 2)
    monkeypatch.undo()
    assert updates_of(out) == 1
    save(out, engine, 2)
    assert updates_of(out) == 2


def test_killed_while_an_old_checkpoint_is_removed(
    engine: Engine, out: Prefix, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(out, engine, 1, keep_last=1)
    remove = Prefix.remove

    def dying(self: Prefix, name: str) -> None:
        remove(self, name)
        raise Killed

    monkeypatch.setattr(Prefix, "remove", dying)
    with pytest.raises(Killed):
        save(out, engine, 2, keep_last=1)
    assert checkpoint_steps(out) == ["00000002"]
    assert updates_of(out) == 2
