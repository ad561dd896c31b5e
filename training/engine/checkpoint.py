"""Checkpoints that are there: reading them, and what their records say. `saving` writes them.

A checkpoint is `checkpoints/STEP/` with safetensors files, one a rank for weights, averages and
optimizer state, and `commit.json`, which says where the run was and lists every file with its size
and SHA-256. Without `commit.json` it does not exist.
"""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from conf.enums import Precision
from conf.errors import RunError, UserError
from data.say import say
from data.storage import Prefix
from training.engine.commit import COMMIT, BrokenCheckpoint, unseal
from training.engine.fragments import Fragment, restore_fragments
from training.engine.pieces import EMA, MODEL, OPTIMIZER, VALUES
from training.engine.stored import Runs, check, find_runs, in_order, read_run
from training.engine.strategy import Engine
from training.engine.world import current_world
from training.loss_scale import LossScale

FOLDER = "checkpoints"


def file_name(kind: str, rank: int) -> str:
    """The file of a rank's pieces of a kind."""
    return f"{kind}-{rank:05d}.safetensors"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is.

    Args:
        samples_seen: Samples trained on, over all ranks: the place in the data and in every
            schedule.
        updates: Global batches, those that were skipped included.
        skipped: Batches whose update was not applied.
        overflows: Those of them that only lowered the loss scale.
        loss_scale: With fp16; else None.
    """

    samples_seen: int = 0
    updates: int = 0
    skipped: int = 0
    overflows: int = 0
    loss_scale: LossScale | None = None


def first_progress(precision: Precision) -> Progress:
    """Where a fresh run is."""
    return Progress(loss_scale=LossScale() if precision is Precision.fp16 else None)


def _parse_progress(commit: Mapping[str, Any]) -> Progress:
    scale = commit["loss_scale"]
    counts = {name: commit[name] for name in ("samples_seen", "updates", "skipped", "overflows")}
    return Progress(**counts, loss_scale=LossScale(**scale) if scale else None)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint; what is read of it has to be checked first.

    Attributes:
        folder: Where it is.
        files: Size and SHA-256 of each file, by name.
        shapes: Of the whole parameters, by name.
        progress: Where the run was.
        val_loss: Of the last validation before it; None if there was none.
        validation: What tells that validation from others.
        tracker: The id of the W&B run that holds the record; None if there was none.
        on_piece: Called again and again while it is checked and read, for that may take long.
    """

    folder: Prefix
    files: Mapping[str, Mapping[str, Any]]
    shapes: Mapping[str, list[int]]
    progress: Progress
    val_loss: float | None
    validation: str | None = None
    tracker: str | None = None
    on_piece: Callable[[], None] = field(default=lambda: None, compare=False)

    def check(self, kinds: Collection[str] | None = None) -> None:
        """Hold files to their hashes.

        Args:
            kinds: Of the files that will be read; None is all.

        Raises:
            BrokenCheckpoint: One is missing, or is not what was committed.
        """
        for name in self._names(kinds):
            record = self.files[name]
            check(self.folder, name, record["bytes"], record["sha256"], self.on_piece)

    def weights(self) -> dict[str, Tensor]:
        """Whole weights, on the CPU, by the names of the parameters."""
        return self.whole(MODEL)

    def averages(self) -> dict[str, Tensor]:
        """Whole averages, likewise."""
        return self.whole(EMA)

    def whole(self, kind: str) -> dict[str, Tensor]:
        """Whole tensors of a kind of file, one for each parameter."""
        spans = [(name, 0, math.prod(shape)) for name, shape in self.shapes.items()]
        return {
            name: values.reshape(shape)
            for (name, shape), values in zip(
                self.shapes.items(), self.values(kind, spans), strict=True
            )
        }

    def values(self, kind: str, spans: Iterable[tuple[str, int, int]]) -> Iterator[Tensor]:
        """Parts of flattened weights or averages, in the order in which they are asked for.

        Args:
            kind: Of file.
            spans: Parameter, first element and number of elements of each.
        """
        return self.fetch(kind, [(Fragment(name, VALUES, start), n) for name, start, n in spans])

    def fetch(self, kind: str, wanted: Iterable[tuple[Fragment, int]]) -> Iterator[Tensor]:
        """Parts of flattened tensors, on the CPU, in the order in which they are asked for.

        Only they are read, whatever ranks wrote them, and only some of them are in memory at once.

        Args:
            kind: Of file.
            wanted: Each with its number of elements.
        """
        runs = self.runs(kind)

        def read(one: tuple[Fragment, int]) -> Tensor:
            place, length = one
            return read_run(self.folder, runs[place.parameter, place.state], place.start, length)

        for values in in_order(read, wanted):
            self.on_piece()
            yield values

    def runs(self, kind: str) -> Runs:
        """Where all ranks' files of a kind hold what."""
        return find_runs(self.folder, self._names([kind]))

    def _names(self, kinds: Collection[str] | None) -> list[str]:
        return sorted(x for x in self.files if kinds is None or x.rpartition("-")[0] in kinds)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of every tensor's name, number format, shape and bytes, by name.

    So it tells weights from others whatever files, and from how many ranks, they came in.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def checkpoint_steps(out: Prefix) -> list[str]:
    """Names of the run's committed checkpoints, oldest first."""
    return [step for step in out.names(FOLDER) if out.exists(f"{FOLDER}/{step}/{COMMIT}")]


def latest_checkpoint(
    out: Prefix,
    kinds: Collection[str] | None = None,
    on_piece: Callable[[], None] = lambda: None,
) -> Checkpoint | None:
    """The newest checkpoint whose files are all as committed, or None if none was ever saved.

    A broken one is passed over, and rank 0 says so.

    Args:
        out: The run.
        kinds: Of the files that will be read, and are checked; None is all.
        on_piece: Called again and again while it is checked, and while it is read.

    Raises:
        RunError: There are checkpoints, and all are broken.
    """
    steps = checkpoint_steps(out)
    for step in reversed(steps):
        try:
            checkpoint = read_checkpoint(out, step, on_piece)
            checkpoint.check(kinds)
        except BrokenCheckpoint as error:
            if current_world().main:  # one line, not one of each rank
                say(f"checkpoint {step} is broken ({error}); falling back to the one before it")
            continue
        return checkpoint
    if steps:
        raise RunError(
            f"{out.url}: none of its {len(steps)} checkpoints is whole; "
            "restore one, or remove them to start again"
        )
    return None


def read_checkpoint(
    out: Prefix, step: str, on_piece: Callable[[], None] = lambda: None
) -> Checkpoint:
    """A committed checkpoint as its record has it; its files are not looked at yet.

    Raises:
        BrokenCheckpoint: The record is not what was written.
    """
    commit = read_commit(out, step)
    return Checkpoint(
        folder=out / f"{FOLDER}/{step}",
        files=commit["files"],
        shapes=commit["shapes"],
        progress=_parse_progress(commit),
        val_loss=commit["val_loss"],
        validation=commit["validation"],
        tracker=commit["tracker"],
        on_piece=on_piece,
    )


def read_commit(out: Prefix, step: str) -> dict[str, Any]:
    """What a committed checkpoint says of itself.

    Raises:
        BrokenCheckpoint: That is not what was written.
    """
    try:
        return unseal(out.read(f"{FOLDER}/{step}/{COMMIT}"))
    except FileNotFoundError:  # removed since it was listed
        raise BrokenCheckpoint(f"{COMMIT} is missing") from None


def require_checkpoint(out: Prefix, kinds: Collection[str] | None = None) -> Checkpoint:
    """The newest whole checkpoint.

    Args:
        out: The run.
        kinds: Of the files that will be read, and are checked; None is all.

    Raises:
        UserError: The run has none.
    """
    checkpoint = latest_checkpoint(out, kinds)
    if checkpoint is None:
        raise UserError(
            f"{out.setting}={out.url}",
            "holds no checkpoint",
            "give the `out` of a run that has saved one",
        )
    return checkpoint


def restore_optimizer(engine: Engine, checkpoint: Checkpoint) -> None:
    """Put the optimizer's state back, whatever engine and number of ranks wrote it."""
    applied = checkpoint.progress.updates - checkpoint.progress.skipped
    if applied:  # or there is no state yet
        restore_fragments(engine, applied, lambda wanted: checkpoint.fetch(OPTIMIZER, wanted))
