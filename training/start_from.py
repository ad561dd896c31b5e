"""`start_from`: a run that begins with the averaged weights of another."""

from torch import nn

from conf.errors import UserError
from data.claim import claimed
from data.storage import Prefix, open_prefix
from training.engine.checkpoint import checkpoint_steps, digest_of, require_checkpoint
from training.engine.pieces import EMA
from training.run import read_run, run_config

START = "start"  # in a run's identity: the digest of the weights that it began with


def start_from(model: nn.Module, url: str, out_url: str) -> dict[str, str]:
    """Give a fresh UNet the averaged weights of another run.

    A run that has saved a checkpoint goes on from that: the other one is not read again, for by
    then it may have been trained on, moved or removed.

    Args:
        model: On the CPU, as every rank has built it.
        url: The `ldm train` run; it may have been trained at another resolution.
        out_url: The run that begins, or goes on.

    Returns:
        What tells these weights from others, for the new run's identity.

    Raises:
        UserError: There is no such run, its UNet has other sizes, or it no longer has the weights
            that `out_url` began with.
    """
    out = open_prefix(out_url, "out")
    known = (claimed(out) or {}).get(START)
    if known and _goes_on(out, url):
        return {START: known}
    there = open_prefix(url, "start_from")
    read_run(there, "train")
    averages = require_checkpoint(there, [EMA]).averages()
    try:
        model.load_state_dict(averages)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip().rstrip(".")
        raise UserError(
            f"start_from={url}",
            f"is of a UNet of other sizes ({first})",
            "give the unet settings that it was trained with, and latents and captions alike",
        ) from None
    digest = digest_of(averages)
    if known and known != digest:
        raise UserError(
            f"start_from={url}",
            f"has other weights than {out_url} began with",
            "give what it began with, or choose another out",
        )
    return {START: digest}


def _goes_on(out: Prefix, url: str) -> bool:
    """Whether a run was last started with the same setting, and has got as far as a checkpoint."""
    return bool(checkpoint_steps(out)) and run_config(out).get("start_from") == url
