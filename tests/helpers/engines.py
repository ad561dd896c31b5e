"""Several engines in one set of ranks: a fresh interpreter takes ten times as long as one."""

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from unittest import mock

import torch.distributed as dist
from torch import Tensor

from data.storage import Prefix
from tests.helpers.latents import train_small
from training.engine.checkpoint import Progress
from training.engine.pieces import EMA, pieces_of
from training.engine.retention import Keep
from training.engine.saving import Saver
from training.engine.strategy import Engine

ONE = Keep(last=1)


def forget_engine() -> None:
    """Lets the next engine of this process start afresh, as in a process of its own."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)


def train_in_turn(latents: Path, runs: Sequence[tuple[Path, Sequence[str]]]) -> None:
    """For `run_ranks`: `ldm train` into each folder with the settings beside it.

    The process group stays, for a second one cannot be had on the same port.
    """
    with mock.patch.object(dist, "destroy_process_group"):
        for out, settings in runs:
            forget_engine()
            train_small(latents, out, *settings)


def save_now(
    out: Prefix, engine: Engine, ema: Sequence[Tensor], progress: Progress, keep: Keep = ONE
) -> None:
    """Saves a checkpoint and waits until it is committed; every rank calls it."""
    with closing(Saver(out, engine, keep)) as saver:
        saver.save(pieces_of(engine, {EMA: ema}), progress)
        saver.finish()
