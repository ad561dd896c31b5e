"""The average of any length, from those that a run has kept on its way."""

from collections.abc import Sequence

import torch
from torch import Tensor

from conf.errors import UserError
from data.storage import Prefix
from training.averages import kind_of
from training.engine.checkpoint import Checkpoint, checkpoint_steps, read_checkpoint
from training.posthoc import Profile, coefficients, gamma_of, residual

SNAPSHOTS = "snapshots"
MOST_LEFT = 0.1  # of the wanted profile's norm; what the paper rebuilds leaves a hundredth


def rebuilt_average(
    out: Prefix, checkpoint: Checkpoint, kept_lengths: Sequence[float], length: float
) -> dict[str, Tensor]:
    """The average of a length at a checkpoint, by the names of the parameters.

    Args:
        out: The run.
        checkpoint: Its newest.
        kept_lengths: `train.ema_lengths` of the run.
        length: The one that is wanted, as a share of the training so far (`sigma_rel`).

    Raises:
        UserError: The run has kept none, or the length is out of their reach.
    """
    setting = f"ema_length={length:g}"
    if not kept_lengths:
        raise UserError(
            setting,
            f"cannot be rebuilt: {out.url} kept no averages for it",
            "train with train.ema_lengths=[0.05,0.1], or leave it out",
        )
    end = checkpoint.progress.samples_seen
    sources = [checkpoint]
    snapshots = out / SNAPSHOTS
    for step in checkpoint_steps(snapshots):
        snapshot = read_checkpoint(snapshots, step)
        if snapshot.progress.samples_seen < end:
            sources.append(snapshot)
    places = [(source, each) for source in sources for each in kept_lengths]
    profiles = [Profile(gamma_of(one), source.progress.samples_seen) for source, one in places]
    wanted = Profile(gamma_of(length), end)
    if (left := residual(profiles, wanted)) > MOST_LEFT:
        raise UserError(
            setting,
            f"is out of reach of the {len(places)} averages that {out.url} kept: {left:.0%} of "
            "its profile would be missing",
            f"choose a length nearer to {', '.join(f'{one:g}' for one in kept_lengths)}",
        )
    for source in sources:
        source.check([kind_of(each) for each in kept_lengths])
    found: dict[str, Tensor] = {}
    for (source, each), share in zip(places, coefficients(profiles, wanted), strict=True):
        for name, average in source.whole(kind_of(each)).items():
            total = found.setdefault(name, torch.zeros_like(average, dtype=torch.float64))
            total.add_(average, alpha=float(share))
    return {name: total.float() for name, total in found.items()}
