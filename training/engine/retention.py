"""Which checkpoints of a run are kept. What goes loses its commit first."""

import math
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from data.storage import Prefix
from training.engine.checkpoint import FOLDER, checkpoint_steps, read_commit
from training.engine.commit import COMMIT, BrokenCheckpoint

# A validation loss and what tells its validation from others; None if there was none.
Measured = tuple[float, str | None] | None


@dataclass(frozen=True, slots=True)
class Keep:
    """Which checkpoints are kept; one reason is enough.

    Args:
        last: So many of the newest.
        every_samples: The first after each multiple of it; None keeps none.
        best: So many with the lowest validation loss, of each validation that there was: losses
            on other samples or noise are not to be compared.
    """

    last: int
    every_samples: int | None = None
    best: int = 0


ALL = Keep(last=1, every_samples=1)


def kept_steps(seen: Mapping[str, int], losses: Mapping[str, Measured], keep: Keep) -> set[str]:
    """Names of the checkpoints that are kept.

    Args:
        seen: Samples seen by name, oldest first.
        losses: What was measured, by name.
        keep: What is asked for.
    """
    kept = set([*seen][-keep.last :])
    if keep.every_samples:
        kept |= set(first_of_each(seen, keep.every_samples))
    alike: dict[str | None, dict[str, float]] = defaultdict(dict)
    for step, measured in losses.items():
        if measured is not None:
            loss, validation = measured
            alike[validation][step] = loss
    return kept.union(*(best_of(those, keep.best) for those in alike.values()))


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


def best_of(losses: Mapping[str, float], count: int) -> list[str]:
    """Names of those with the lowest finite loss, the best first.

    Of several that share one, for nothing was measured between them, the first is the best: it is
    the nearest to what was measured.
    """
    finite = [step for step, loss in losses.items() if math.isfinite(loss)]
    return sorted(finite, key=lambda step: (losses[step], step))[:count]


def remove_others(out: Prefix, newest: str, keep: Keep) -> None:
    """Keep what is asked for of those up to `newest`, and nothing else.

    What is older may be a killed process's leavings; what is newer was broken and given up.
    """
    seen: dict[str, int] = {}
    losses: dict[str, Measured] = {}
    for step in checkpoint_steps(out):
        if step <= newest:
            with suppress(BrokenCheckpoint):  # one that is broken is not kept
                commit = read_commit(out, step)
                seen[step], loss = commit["samples_seen"], commit["val_loss"]
                losses[step] = None if loss is None else (loss, commit["validation"])
    kept = kept_steps(seen, losses, keep)
    for step in out.names(FOLDER):
        if step not in kept:
            # The commit goes first: what is half removed must not look whole.
            out.remove(f"{FOLDER}/{step}/{COMMIT}")
            out.remove(f"{FOLDER}/{step}")
