"""Checkpoints: written by all ranks, committed by a file of hashes, verified on load.

A checkpoint is `checkpoints/STEP/` with safetensors files and `commit.json`, which says where the
run was and lists every file with its size and SHA-256. Without `commit.json` it does not exist.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from conf.enums import Precision
from conf.errors import RunError, UserError
from data.manifest import sha256
from data.say import say
from data.storage import Prefix
from training.engine.fragments import Fragment, collect_fragments, restore_fragments
from training.engine.shares import whole, whole_weights
from training.engine.strategy import Engine
from training.loss_scale import LossScale

FOLDER = "checkpoints"
COMMIT = "commit.json"
MODEL = "model.safetensors"
EMA = "ema.safetensors"


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
    """A committed checkpoint whose files were checked against their hashes when they were read."""

    folder: Prefix
    files: dict[str, dict[str, Any]]
    progress: Progress

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of its safetensors files."""
        return load(_checked(self.folder, name, self.files[name]["sha256"]))

    def optimizer_files(self) -> list[str]:
        """The ranks' files of optimizer state."""
        return sorted(name for name in self.files if name.startswith("optimizer-"))


class BrokenCheckpoint(RunError):
    """A checkpoint's file is missing or is not what was committed."""


def save_checkpoint(
    out: Prefix,
    engine: Engine,
    ema: list[Tensor],
    progress: Progress,
    keep_last: int,
    keep_every: int | None = None,
) -> None:
    """Write a checkpoint from all ranks; it exists once the last rank's files are safe.

    Args:
        out: The run.
        engine: The engine; every rank calls this.
        ema: What this rank keeps of the averaged weights, as `kept_weights` has it.
        progress: Where the run is.
        keep_last: Newest checkpoints to keep, this one included.
        keep_every: Samples; the first checkpoint after each multiple of it is kept too.
    """
    folder = out / f"{FOLDER}/{progress.updates:08d}"
    contents = {f"optimizer-{engine.world.rank:05d}.safetensors": _fragments(engine)}
    for name, tensors in ((MODEL, whole_weights(engine)), (EMA, whole(engine, ema))):
        content = _on_rank_0(engine, tensors)
        if content is not None:
            contents[name] = content
    written = {}
    for name, content in contents.items():
        folder.write(name, content)
        written[name] = {"bytes": len(content), "sha256": sha256(content)}
    files: dict[str, Any] = {}
    for part in engine.gather(written):  # also the barrier: all ranks have written
        files |= part
    if engine.world.main:
        folder.write(COMMIT, json.dumps({"files": files, **asdict(progress)}, indent=1).encode())
        out.write("latest", folder.root.rstrip("/").rsplit("/", 1)[-1].encode())
        _remove_others(out, f"{progress.updates:08d}", keep_last, keep_every)


def _remove_others(out: Prefix, newest: str, keep_last: int, keep_every: int | None) -> None:
    """Keep the last few up to `newest`, the first of each long interval, and nothing else.

    What is older may be a killed process's leavings; what is newer was broken and given up.
    """
    steps = [step for step in checkpoint_steps(out) if step <= newest]
    kept = set(steps[-keep_last:])
    if keep_every:
        seen = {step: _read_commit(out, step)["samples_seen"] for step in steps}
        kept |= set(first_of_each(seen, keep_every))
    for step in out.names(FOLDER):
        if step not in kept:
            # The commit goes first: what is half removed must not look whole.
            out.remove(f"{FOLDER}/{step}/{COMMIT}")
            out.remove(f"{FOLDER}/{step}")


def first_of_each(seen: Mapping[str, int], every: int) -> list[str]:
    """Names of those that are the first after a multiple of `every` samples.

    Args:
        seen: Samples seen by name, oldest first.
        every: Samples.
    """
    passed, first = 0, []
    for step, samples in seen.items():
        if samples // every > passed:
            first.append(step)
            passed = samples // every
    return first


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
            commit = _read_commit(out, step)
            for name, record in commit["files"].items():
                _checked(folder, name, record["sha256"])
            progress = _parse_progress(commit)
        except (BrokenCheckpoint, FileNotFoundError, ValueError, KeyError) as error:
            say(f"checkpoint {step} is broken ({error}); falling back to the one before it")
            continue
        return Checkpoint(folder, commit["files"], progress)
    if steps:
        raise RunError(
            f"{out.url}: none of its {len(steps)} checkpoints is whole; "
            "restore one, or remove them to start again"
        )
    return None


def _read_commit(out: Prefix, step: str) -> dict[str, Any]:
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
    pieces: dict[tuple[str, str], list[tuple[int, Tensor]]] = {}
    for name in checkpoint.optimizer_files():
        for text, tensor in checkpoint.tensors(name).items():
            place = Fragment.parse(text)
            pieces.setdefault((place.parameter, place.state), []).append((place.start, tensor))

    def read(parameter: str, state: str, start: int, length: int) -> Tensor:
        return _cut(pieces[parameter, state], start, length)

    applied = checkpoint.progress.updates - checkpoint.progress.skipped
    restore_fragments(engine, applied, read)


def _cut(pieces: Iterable[tuple[int, Tensor]], start: int, length: int) -> Tensor:
    """Elements `start` to `start + length` out of pieces that together hold them."""
    ordered = sorted(pieces, key=lambda piece: piece[0])
    result = ordered[0][1].new_empty(length)
    filled = 0
    for first, tensor in ordered:
        low, high = max(start, first), min(start + length, first + len(tensor))
        if low < high:
            result[low - start : high - start] = tensor[low - first : high - first]
            filled += high - low
    assert filled == length, f"{filled} of {length} elements found"
    return result


def _on_rank_0(engine: Engine, tensors: Iterable[Tensor]) -> bytes | None:
    """A safetensors file of whole tensors, on rank 0; the others only give what they keep."""
    kept = {}
    names = [name for name, _ in engine.module.named_parameters()]
    for name, tensor in zip(names, tensors, strict=True):
        if engine.world.main:
            kept[name] = tensor.cpu().contiguous()
    return save(kept) if engine.world.main else None


def _fragments(engine: Engine) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in collect_fragments(engine).items()})


def _checked(folder: Prefix, name: str, expected: str) -> bytes:
    try:
        content = folder.read(name)
    except FileNotFoundError:
        raise BrokenCheckpoint(f"{name} is missing") from None
    if sha256(content) != expected:
        raise BrokenCheckpoint(f"{name} is not what was committed")
    return content
