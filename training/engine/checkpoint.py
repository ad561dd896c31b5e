"""Checkpoints that are there: reading them, and what their records say. `saving` writes them.

A checkpoint is `checkpoints/STEP/` with safetensors files, one a rank for weights, averages and
optimizer state, and `commit.json`, which says where the run was and lists every file with its size
and SHA-256. Without `commit.json` it does not exist.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from conf.enums import Precision
from conf.errors import RunError, UserError
from data.manifest import sha256
from data.say import say
from data.storage import Prefix
from training.engine.fragments import Fragment, restore_fragments
from training.engine.pieces import EMA, MODEL, OPTIMIZER, VALUES
from training.engine.strategy import Engine
from training.loss_scale import LossScale

FOLDER = "checkpoints"
COMMIT = "commit.json"

# Runs of flattened tensors with their first elements, by parameter and state.
Runs = dict[tuple[str, str], list[tuple[int, Tensor]]]


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
    """A committed checkpoint whose files were checked against their hashes when they were read.

    Attributes:
        folder: Where it is.
        files: Size and SHA-256 of each file, by name.
        shapes: Of the whole parameters, by name.
        progress: Where the run was.
        val_loss: Of the last validation before it; None if there was none.
        tracker: The id of the W&B run that holds the record; None if there was none.
    """

    folder: Prefix
    files: Mapping[str, Mapping[str, Any]]
    shapes: Mapping[str, list[int]]
    progress: Progress
    val_loss: float | None
    tracker: str | None = None

    def weights(self) -> dict[str, Tensor]:
        """Whole weights, on the CPU, by the names of the parameters."""
        return self.whole(MODEL)

    def averages(self) -> dict[str, Tensor]:
        """Whole averages, likewise."""
        return self.whole(EMA)

    def runs(self, kind: str) -> Runs:
        """What all ranks' files of a kind hold."""
        found: Runs = {}
        for name in sorted(self.files):
            if name.startswith(f"{kind}-"):
                content = _checked(self.folder, name, self.files[name]["sha256"])
                for text, tensor in load(content).items():
                    place = Fragment.parse(text)
                    runs = found.setdefault((place.parameter, place.state), [])
                    runs.append((place.start, tensor))
        return found

    def whole(self, kind: str) -> dict[str, Tensor]:
        """Whole tensors of a kind of file, one for each parameter."""
        runs = self.runs(kind)
        return {
            name: _cut(runs[name, VALUES], 0, math.prod(shape)).reshape(shape)
            for name, shape in self.shapes.items()
        }


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of every tensor's name, number format, shape and bytes, by name.

    So it tells weights from others whatever files, and from how many ranks, they came in.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class BrokenCheckpoint(RunError):
    """A checkpoint's file is missing or is not what was committed."""


def checkpoint_steps(out: Prefix) -> list[str]:
    """Names of the run's committed checkpoints, oldest first."""
    return [step for step in out.names(FOLDER) if out.exists(f"{FOLDER}/{step}/{COMMIT}")]


def latest_checkpoint(out: Prefix) -> Checkpoint | None:
    """The newest checkpoint whose files are all as committed, or None if none was ever saved.

    A broken one is passed over, and said so.

    Raises:
        RunError: There are checkpoints, and all are broken.
    """
    steps = checkpoint_steps(out)
    for step in reversed(steps):
        folder = out / f"{FOLDER}/{step}"
        try:
            checkpoint = read_checkpoint(out, step)
            for name, record in checkpoint.files.items():
                _checked(folder, name, record["sha256"])
        except (BrokenCheckpoint, FileNotFoundError, ValueError, KeyError) as error:
            say(f"checkpoint {step} is broken ({error}); falling back to the one before it")
            continue
        return checkpoint
    if steps:
        raise RunError(
            f"{out.url}: none of its {len(steps)} checkpoints is whole; "
            "restore one, or remove them to start again"
        )
    return None


def read_checkpoint(out: Prefix, step: str) -> Checkpoint:
    """A committed checkpoint as its record has it; its files are checked when they are read."""
    commit = read_commit(out, step)
    return Checkpoint(
        folder=out / f"{FOLDER}/{step}",
        files=commit["files"],
        shapes=commit["shapes"],
        progress=_parse_progress(commit),
        val_loss=commit["val_loss"],
        tracker=commit.get("tracker"),
    )


def read_commit(out: Prefix, step: str) -> dict[str, Any]:
    """What a committed checkpoint says of itself."""
    commit: dict[str, Any] = json.loads(out.read(f"{FOLDER}/{step}/{COMMIT}"))
    return commit


def require_checkpoint(out: Prefix) -> Checkpoint:
    """The newest whole checkpoint.

    Raises:
        UserError: The run has none.
    """
    checkpoint = latest_checkpoint(out)
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
    if not applied:  # there is no state yet
        return
    runs = checkpoint.runs(OPTIMIZER)

    def read(parameter: str, state: str, start: int, length: int) -> Tensor:
        return _cut(runs[parameter, state], start, length)

    restore_fragments(engine, applied, read)


def _cut(runs: Iterable[tuple[int, Tensor]], start: int, length: int) -> Tensor:
    """Elements `start` to `start + length` out of runs that together hold them."""
    ordered = sorted(runs, key=lambda run: run[0])
    if ordered[0][0] == start and len(ordered[0][1]) == length:
        return ordered[0][1]
    result = ordered[0][1].new_empty(length)
    filled = 0
    for first, tensor in ordered:
        low, high = max(start, first), min(start + length, first + len(tensor))
        if low < high:
            result[low - start : high - start] = tensor[low - first : high - first]
            filled += high - low
    assert filled == length, f"{filled} of {length} elements found"
    return result


def _checked(folder: Prefix, name: str, expected: str) -> bytes:
    try:
        content = folder.read(name)
    except FileNotFoundError:
        raise BrokenCheckpoint(f"{name} is missing") from None
    if sha256(content) != expected:
        raise BrokenCheckpoint(f"{name} is not what was committed")
    return content
