"""Which checkpoints of a run are kept. What goes loses its commit first."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from data.storage import Prefix
from training.engine.checkpoint import COMMIT, FOLDER, checkpoint_steps, read_commit


@dataclass(frozen=True, slots=True)
class Keep:
    """Which checkpoints are kept; one reason is enough.

    Args:
        last: So many of the newest.
        every_samples: The first after each multiple of it; None keeps none.
        best: So many with the lowest validation loss.
    """

    last: int
    every_samples: int | None = None
    best: int = 0


ALL = Keep(last=1, every_samples=1)


def kept_steps(seen: Mapping[str, int], losses: Mapping[str, float | None], keep: Keep) -> set[str]:
    """Names of the checkpoints that are kept.

    Args:
        seen: Samples seen by name, oldest first.
        losses: Validation losses by name, where there was a validation.
        keep: What is asked for.
    """
    kept = set([*seen][-keep.last :])
    if keep.every_samples:
        kept |= set(first_of_each(seen, keep.every_samples))
    return kept | set(best_of(losses, keep.best))


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


def best_of(losses: Mapping[str, float | None], count: int) -> list[str]:
    """Names of those with the lowest finite loss, the best first.

    Of several that share one, for nothing was measured between them, the first is the best: it is
    the nearest to what was measured.
    """
    measured = {x: loss for x, loss in losses.items() if loss is not None and math.isfinite(loss)}
    return sorted(measured, key=lambda step: (measured[step], step))[:count]


def remove_others(out: Prefix, newest: str, keep: Keep) -> None:
    """Keep what is asked for of those up to `newest`, and nothing else.

    What is older may be a killed process's leavings; what is newer was broken and given up.
    """
    commits = {}
    for step in checkpoint_steps(out):
        if step <= newest:
            with suppress(ValueError, KeyError):  # one that is broken is not kept
                commit = read_commit(out, step)
                commits[step] = commit["samples_seen"], commit["val_loss"]
    seen = {step: samples for step, (samples, _) in commits.items()}
    losses = {step: loss for step, (_, loss) in commits.items()}
    kept = kept_steps(seen, losses, keep)
    for step in out.names(FOLDER):
        if step not in kept:
            # The commit goes first: what is half removed must not look whole.
            out.remove(f"{FOLDER}/{step}/{COMMIT}")
            out.remove(f"{FOLDER}/{step}")
