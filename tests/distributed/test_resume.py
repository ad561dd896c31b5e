"""A run that stops and goes on ends where one without a stop does, on these ranks or on others."""

import shutil
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from conf.enums import EngineKind, Precision
from conf.groups import UNetConfig
from conf.training import EngineConfig, OptimizerConfig
from data.storage import open_prefix
from data.stream import open_dataset
from tests.helpers.engines import forget_engine, save_now, train_in_turn
from tests.helpers.latents import (
    adam_moments,
    assert_close,
    assert_equal,
    assert_same_state,
    checkpoint_of,
)
from tests.helpers.ranks import run_ranks
from training.averages import kind_of
from training.diffuse import build_unet
from training.engine.build import build_engine
from training.engine.checkpoint import restore_optimizer
from training.engine.pieces import EMA
from training.engine.shares import kept_of
from training.loss_scale import LossScale
from training.run import read_run
from training.tracking.files import read_metrics

ENGINES = (("single", 1), ("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2))
WAYS = {f"{kind}": (ranks, (f"engine={kind}",)) for kind, ranks in ENGINES} | {
    "fp16": (2, ("engine=zero2", "engine.precision=fp16")),
    "lengths": (2, ("engine=zero2", "train.ema_lengths=[0.05,0.1]")),
    "8bit": (2, ("engine=ddp", "optimizer.kind=adamw_8bit")),
}
HALF, WHOLE = "train.samples=32", "train.samples=64"  # four and eight steps
# Dropout is drawn anew for every rank: it has no place where the number of ranks changes.
PORTABLE = ("unet.dropout=0", "optimizer.eps=1e-2", "optimizer.lr=0.1", "engine=zero2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, latents: Path) -> Path:
    """Runs of eight steps, at once and in two parts by different processes."""
    root = tmp_path_factory.mktemp("runs")
    for ranks in (1, 2):
        ways = {way: settings for way, (size, settings) in WAYS.items() if size == ranks}
        first = [(root / f"{way}_at_once", (WHOLE, *more)) for way, more in ways.items()]
        first += [(root / f"{way}_in_parts", (HALF, *more)) for way, more in ways.items()]
        if ranks == 2:
            first += [(root / "at_once", (WHOLE, *PORTABLE)), (root / "half", (HALF, *PORTABLE))]
        run_ranks(train_in_turn, ranks, latents, first)
        second = [(root / f"{way}_in_parts", (WHOLE, *more)) for way, more in ways.items()]
        if ranks == 2:
            shutil.copytree(root / "half", root / "on_other_ranks")
        run_ranks(train_in_turn, ranks, latents, second)
    elsewhere = [(root / "on_other_ranks", (WHOLE, *PORTABLE[:-1], "engine=single"))]
    run_ranks(train_in_turn, 1, latents, elsewhere)
    return root


@pytest.mark.parametrize("way", WAYS)
def test_two_halves_equal_the_whole_bit_for_bit(runs: Path, way: str) -> None:
    whole = checkpoint_of(runs / f"{way}_at_once")
    halves = checkpoint_of(runs / f"{way}_in_parts")
    assert halves.progress == whole.progress
    assert halves.progress.updates == 8
    assert_equal(halves.weights(), whole.weights())
    assert_equal(halves.averages(), whole.averages())
    assert_equal(adam_moments(halves), adam_moments(whole))


def test_power_averages_go_on_bit_for_bit(runs: Path) -> None:
    whole, halves = (checkpoint_of(runs / f"lengths_{how}") for how in ("at_once", "in_parts"))
    for length in (0.05, 0.1):
        average = whole.whole(kind_of(length))
        assert_equal(halves.whole(kind_of(length)), average)
        assert any(
            not torch.equal(average[name], value) for name, value in whole.averages().items()
        )


def test_moments_in_8_bits_take_a_byte_each(runs: Path) -> None:
    kept = adam_moments(checkpoint_of(runs / "8bit_at_once"))
    kinds = {name.rpartition("|")[2] for name in kept}
    assert kinds == {"state1", "state2", "absmax1", "absmax2"}
    large = [value for name, value in kept.items() if f"{name.rpartition('|')[0]}|absmax1" in kept]
    assert {value.dtype for value in large} == {torch.uint8, torch.float32}
    in_bytes = sum(value.nbytes for value in large)
    numbers = sum(value.numel() for value in large if value.dtype == torch.uint8)
    assert in_bytes < 1.02 * numbers
    assert len(large) > 20


def test_half_precision_changes_little(runs: Path) -> None:
    lines = {
        way: read_metrics(open_prefix(str(runs / f"{way}_at_once"), "out"))[-1]
        for way in ("zero2", "fp16")
    }
    assert lines["fp16"]["loss"] == pytest.approx(lines["zero2"]["loss"], rel=1e-2)
    assert lines["fp16"]["grad_norm"] == pytest.approx(lines["zero2"]["grad_norm"], rel=5e-2)
    assert lines["fp16"]["loss_scale"] == LossScale().factor
    assert lines["fp16"]["loss"] != lines["zero2"]["loss"]


def test_two_ranks_of_zero2_go_on_as_a_single_process(runs: Path) -> None:
    whole, halves = checkpoint_of(runs / "at_once"), checkpoint_of(runs / "on_other_ranks")
    assert len(whole.files) == 6
    assert len(halves.files) == 3
    assert_close(halves.weights(), whole.weights())
    assert_close(halves.averages(), whole.averages())
    assert_close(adam_moments(halves), adam_moments(whole))


def restore_and_save(latents: Path, moves: list[tuple[Path, str, Path]]) -> None:
    """For `run_ranks`: for every (from, engine, to), a checkpoint into an engine and out again."""
    with mock.patch.object(dist, "destroy_process_group"):
        for source, kind, target in moves:
            forget_engine()
            _restore_and_save(latents, source, kind, target)


def _restore_and_save(latents: Path, source: Path, kind: str, target: Path) -> None:
    run = read_run(open_prefix(str(source), "out"), "train")
    checkpoint = checkpoint_of(source)
    model = build_unet(UNetConfig(**run["unet"]), open_dataset(str(latents), "latents").manifest)
    model.load_state_dict(checkpoint.weights())
    optimizer = OptimizerConfig()
    engine = build_engine(
        EngineConfig(kind=EngineKind(kind), precision=Precision.fp32), optimizer, model, 1, 1
    )
    restore_optimizer(engine, checkpoint)
    ema = kept_of(engine, partial(checkpoint.values, EMA))
    out = open_prefix(str(target), "out")
    save_now(out, engine, ema, checkpoint.progress)
    if engine.world.main:
        shutil.copy(source / "settings.json", target)
    engine.close()


def test_moments_survive_any_change_of_engine_and_ranks(runs: Path, latents: Path) -> None:
    two_ranks = runs / "zero2_at_once"
    folder = runs / "moved"
    moves = [
        (two_ranks, kind, folder / f"1-{kind}") for kind in ("single", "ddp", "zero1", "zero3")
    ]
    run_ranks(restore_and_save, 1, latents, moves)
    back = [  # with the moves before, ZeRO 1, 2 and 3 in every change
        (folder / "1-single", "zero2", folder / "2-zero2"),
        (folder / "1-ddp", "zero1", folder / "2-zero1"),
        (folder / "1-zero1", "zero3", folder / "2-zero3"),
        (folder / "1-zero3", "ddp", folder / "2-ddp"),
        (folder / "1-zero1", "zero2", folder / "2-zero2-of-1"),
        (folder / "1-zero3", "zero2", folder / "2-zero2-of-3"),
        (folder / "1-zero3", "zero1", folder / "2-zero1-of-3"),
    ]
    run_ranks(restore_and_save, 2, latents, back)
    wanted = adam_moments(checkpoint_of(two_ranks))
    assert all(value.any() for value in wanted.values())
    for _, _, place in (*moves, *back):
        moved = checkpoint_of(place)
        assert_equal(adam_moments(moved), wanted)
        assert_same_state(moved, checkpoint_of(two_ranks))
