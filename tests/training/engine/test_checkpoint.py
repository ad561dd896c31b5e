"""A checkpoint is whole or does not exist, whatever happens to its files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conf.errors import RunError, UserError
from data.storage import Prefix, open_prefix
from tests.helpers.engines import save_now
from tests.helpers.latents import adam_moments, assert_equal
from tests.helpers.small_engine import average, small_engine, step
from training.engine.checkpoint import (
    Progress,
    checkpoint_steps,
    digest_of,
    file_name,
    latest_checkpoint,
    require_checkpoint,
    restore_optimizer,
)
from training.engine.commit import COMMIT
from training.engine.pieces import EMA, MODEL, OPTIMIZER
from training.engine.retention import Keep
from training.engine.strategy import Engine

FILES = [file_name(kind, 0) for kind in (MODEL, EMA, OPTIMIZER)]


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = small_engine(seed=0)
    step(made)
    yield made
    made.close()


def save(out: Prefix, engine: Engine, updates: int, keep_last: int = 2) -> Path:
    """Saves a checkpoint and returns its folder."""
    progress = Progress(samples_seen=4 * updates, updates=updates)
    save_now(out, engine, average(engine), progress, Keep(keep_last))
    return Path(out.path(f"checkpoints/{updates:08d}"))


def updates_of(out: Prefix) -> int | None:
    checkpoint = latest_checkpoint(out)
    return checkpoint.progress.updates if checkpoint else None


def test_what_was_saved_comes_back(engine: Engine, out: Prefix) -> None:
    save(out, engine, 7)
    checkpoint = latest_checkpoint(out)
    assert checkpoint is not None
    assert checkpoint.progress == Progress(28, 7)
    assert_equal(checkpoint.weights(), engine.module.state_dict())
    names = [name for name, _ in engine.module.named_parameters()]
    assert_equal(checkpoint.averages(), dict(zip(names, average(engine), strict=True)))
    other = small_engine(seed=1)
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


def test_what_a_killed_process_left_of_a_checkpoint_is_removed(engine: Engine, out: Prefix) -> None:
    (save(out, engine, 1) / COMMIT).unlink()
    for updates in (2, 3, 4):
        save(out, engine, updates, keep_last=2)
    assert out.names("checkpoints") == ["00000003", "00000004"]


@pytest.fixture(scope="module")
def killed_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Prefix]:
    """Makes a run as it is if its second checkpoint's writer dies after so many thousandths.

    The files are put there in the order in which they were written, and the one in the middle is
    cut: a store that shows less than whole files is the worst case.
    """
    root = tmp_path_factory.mktemp("killed")
    written: list[tuple[str, bytes]] = []
    write = Prefix.write

    def noting(self: Prefix, name: str, content: bytes | memoryview) -> None:
        written.append((self.path(name), bytes(content)))
        write(self, name, content)

    engine = small_engine(seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prefix, "write", noting)
        for updates in (1, 2):
            step_and_save(open_prefix(str(root / "run"), "out"), engine, updates)
    engine.close()

    def make(thousandths: int) -> Prefix:
        second = next(i for i, (path, _) in enumerate(written) if "/00000002/" in path)
        left = sum(len(content) for _, content in written[second:]) * thousandths // 1000
        made = root / str(thousandths)
        for number, (path, content) in enumerate(written):
            length = len(content) if number < second else min(left, len(content))
            left -= length if number >= second else 0
            if length:
                target = made / Path(path).relative_to(root / "run")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content[:length])
        return open_prefix(str(made), "out")

    return make


def step_and_save(out: Prefix, engine: Engine, updates: int) -> None:
    """Makes an update, the same whoever makes it, and saves what comes of it."""
    torch.manual_seed(updates)
    step(engine)
    save(out, engine, updates)


def go_on(out: Prefix, engine: Engine) -> int:
    """Takes a run up where it is, and on to three updates; returns where that was."""
    checkpoint = require_checkpoint(out)
    begun = checkpoint.progress.updates
    engine.module.load_state_dict(checkpoint.weights())
    restore_optimizer(engine, checkpoint)
    for updates in range(begun + 1, 4):
        step_and_save(out, engine, updates)
    return begun


def state_of(out: Prefix) -> list[dict[str, torch.Tensor]]:
    checkpoint = require_checkpoint(out)
    assert checkpoint.progress == Progress(12, 3)
    return [checkpoint.weights(), checkpoint.averages(), adam_moments(checkpoint)]


def test_killed_at_any_byte_a_run_goes_on_to_the_same_end(
    killed_at: Callable[[int], Prefix], engine: Engine
) -> None:
    peaceful = killed_at(1000)
    assert go_on(peaceful, engine) == 2
    wanted, met = state_of(peaceful), []
    for place in range(5, 1000, 10):
        out = killed_at(place)
        met.append(go_on(out, engine))
        for one, other in zip(state_of(out), wanted, strict=True):
            assert_equal(one, other)
    assert len(met) == 100
    assert met == sorted(met)  # once it is committed it stays so
    assert met[0] == 1


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
    with pytest.raises(RunError, match="could not be saved by rank 0 \\(Killed\\)"):
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
        if name.endswith(f"00000001/{COMMIT}"):
            raise Killed

    monkeypatch.setattr(Prefix, "remove", dying)
    with pytest.raises(RunError, match="Killed"):
        save(out, engine, 2, keep_last=1)
    assert checkpoint_steps(out) == ["00000002"]
    assert updates_of(out) == 2


def test_images_that_lie_with_their_channels_together_are_kept_in_logical_order(
    out: Prefix,
) -> None:
    engine = small_engine(seed=0, channels_last=True)
    step(engine)
    weight = engine.module.get_parameter("0.weight")
    assert not weight.is_contiguous()  # or this would say nothing
    folder = save(out, engine, 1)
    engine.close()
    kept = load_file(folder / file_name(MODEL, 0))["0.weight|values|0"]
    assert torch.equal(kept, weight.detach().flatten())


def test_a_digest_tells_values_names_shapes_and_formats_apart() -> None:
    one = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(2)}
    same = {"b": torch.zeros(2), "a": one["a"].t().contiguous().t()}  # in another memory layout
    assert digest_of(one) == digest_of(same)
    others: list[dict[str, torch.Tensor]] = [
        {**one, "a": torch.arange(6.0).view(3, 2)},
        {**one, "a": torch.arange(1.0, 7).view(2, 3)},
        {"a": one["a"], "c": one["b"]},
        {**one, "b": torch.zeros(2, dtype=torch.int32)},
    ]
    assert len({digest_of(other) for other in (one, *others)}) == 5
