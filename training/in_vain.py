"""Ends a run that is stopped again and again before it has made a step.

A scheduler starts what ends with 75 again, for ever: with too short a time limit no start would
ever get beyond loading its checkpoint.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from conf.errors import Preempted, RunError
from data.storage import Prefix
from training.engine.checkpoint import checkpoint_steps

STOPPED = "stopped.json"
MOST = 3  # stops in a row; machines that are lent may well be taken back at once, but not always


@contextmanager
def bounded_stops(out: Prefix, main: bool) -> Iterator[None]:
    """Let a start be stopped, unless it is one of `MOST` in a row that got nowhere. On every rank.

    All ranks end alike: of several machines a scheduler takes the one that ended with 75.

    Args:
        out: The run; a checkpoint that is new there when the start is stopped is some way.
        main: Whether this rank keeps count for all.

    Raises:
        RunError: It is; this start counts for the next one as well.
    """
    before = checkpoint_steps(out)
    newest = max(before, default="")
    stops = _stops(out, newest) + 1
    try:
        yield
    except Preempted:
        if set(checkpoint_steps(out)) - set(before):
            raise
        if main:
            out.write(STOPPED, json.dumps({"step": newest, "stops": stops}).encode() + b"\n")
        if stops < MOST:
            raise
        raise RunError(
            f"stopped {stops} times in a row after step {int(newest or 0):,}, each time before the "
            "next one; give the job more time (cluster.time, cluster.stop_seconds, "
            "cluster.minutes)"
        ) from None


def _stops(out: Prefix, newest: str) -> int:
    """How often in a row the run was stopped at this checkpoint."""
    try:
        told = json.loads(out.read(STOPPED))
    except FileNotFoundError:
        return 0
    return int(told["stops"]) if told.get("step") == newest else 0
