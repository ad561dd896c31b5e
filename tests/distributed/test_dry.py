"""Ranks that would do each other's work, or fail, are refused before the first step, and those
that have drifted apart after it."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import data.loader
import training.step
from conf.compose import compose_config
from conf.errors import RunError
from data.corpus import open_corpus
from tests.helpers.engines import train_in_turn
from tests.helpers.latents import (
    adam_moments,
    assert_equal,
    checkpoint_of,
    write_latents,
)
from tests.helpers.ranks import run_ranks
from training.engine.strategy import Engine

KINDS = ("ddp", "zero1", "zero2", "zero3")
WATCHED = ("guards.hang_seconds=20", "guards.dry_batch=true")
PLAIN = ("guards.hang_seconds=0", "guards.dry_batch=false")
BAD_PLACE = 5  # of rank 1
DRIFT = ("guards.digest_every_samples=8", "checkpoint.every_samples=8")


def all_as_rank_0(start: int, part: int, micro: int, rank: int, ranks: int) -> range:
    return rank_places(start, part, micro, 0, ranks)


def normal_of_neighbours(seed: int, places: Iterable[int], *more: Any) -> Any:
    """As if noise were keyed by a sample's number within its micro-batch."""
    return normal(seed, range(len(list(places))), *more)


rank_places, normal = data.loader.rank_places, training.step.normal
update = Engine.update


def flipping(engine: Engine, *given: Any) -> dict[str, float]:
    """As if a bit of rank 1's memory changed after a step."""
    told = update(engine, *given)
    if engine.world.rank == 1:
        bits = next(engine.module.parameters()).data.view(torch.int32)
        bits[(0,) * bits.ndim] ^= 1
    return told


FAULTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "samples": (data.loader, "rank_places", all_as_rank_0),
    "noise": (training.step, "normal", normal_of_neighbours),
    "drift": (Engine, "update", flipping),
}


def train_with_faults(root: Path) -> dict[str, str]:
    """For `run_ranks`: what each fault leads to, and then runs with and without guards."""
    said = {}
    cases = [
        ("samples", "latents", ()),
        ("noise", "latents", ()),
        ("nan", "poisoned", ()),
        ("skipped", "poisoned", ("guards.nonfinite=skip", "train.samples=16")),
        ("memory", "latents", ("guards.free_memory_share=1",)),
        ("drift", "latents", DRIFT),
    ]
    for name, latents, settings in cases:
        with ExitStack() as patches:
            if name in FAULTS:
                patches.enter_context(mock.patch.object(*FAULTS[name]))
            try:
                train_in_turn(root / latents, [(root / name, ("engine=ddp", *settings))])
                said[name] = "nothing"
            except RunError as error:
                said[name] = str(error)
    for kind in KINDS:
        runs = [(root / f"{kind}-watched", WATCHED), (root / f"{kind}-plain", PLAIN)]
        chosen = [(out, (f"engine={kind}", "data.seed=3", *more)) for out, more in runs]
        train_in_turn(root / "latents", chosen)
    return said


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """The folder of all runs, and what the ranks said."""
    root = tmp_path_factory.mktemp("dry")
    write_latents(root / "latents")
    settings = [f"data.url={root}/latents", "out=none", "train.samples=8"]
    config = compose_config("train", settings)
    (bad,) = open_corpus(config.data, "latents", 8, 2).locate(range(BAD_PLACE, BAD_PLACE + 1))
    write_latents(root / "poisoned", nan_in=f"{bad.shard}-{bad.row:03d}")
    return root, run_ranks(train_with_faults, 2, root)


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("samples", "ranks 0 and 1 are given the same samples"),
        ("noise", "ranks 0 and 1 draw the same noise"),
        ("nan", "rank 1, first micro-batch: the loss of "),
        ("memory", "less than guards.free_memory_share=1 of it"),
        ("skipped", "nothing"),
        ("drift", "the weights of rank 0 and of rank 1 differ, and no majority"),
    ],
)
def test_a_fault_is_refused_on_every_rank_and_named(
    trained: tuple[Path, list[dict[str, str]]], fault: str, line: str
) -> None:
    root, ranks = trained
    assert [line in said[fault] for said in ranks] == [True, True], ranks
    assert ranks[0][fault] == ranks[1][fault]
    assert (root / fault / "checkpoints").exists() == (fault == "skipped")


@pytest.mark.parametrize("kind", KINDS)
def test_a_watched_run_has_the_same_bits(
    trained: tuple[Path, list[dict[str, str]]], kind: str
) -> None:
    root, _ = trained
    watched, plain = (checkpoint_of(root / f"{kind}-{name}") for name in ("watched", "plain"))
    assert_equal(watched.weights(), plain.weights())
    assert_equal(watched.averages(), plain.averages())
    assert_equal(adam_moments(watched), adam_moments(plain))
