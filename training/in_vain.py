"""Ends a run that is stopped again and again before it has made a step.

A scheduler starts what ends with 75 again, for ever: with too short a time limit no start would
ever get beyond loading its checkpoint.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from conf.errors import Preempted, RunError
from data.storage import Prefix
from training.engine.checkpoint import Progress, checkpoint_steps

STOPPED = "stopped.json"
MOST = 3  # stops in a row; machines that are lent may well be taken back at once, but not always


@contextmanager
def bounded_stops(out: Prefix, start: Progress, main: bool) -> Iterator[None]:
    """Let a start be stopped, unless it is one of `MOST` in a row that got nowhere.

    Args:
        out: The run.
        start: Where this start of it begins.
        main: Whether this rank speaks for all.

    Raises:
        RunError: It is; this start counts for the next one as well.
    """
    try:
        yield
    except Preempted:
        if not main or any(int(step) > start.updates for step in checkpoint_steps(out)):
            raise
        here = {"samples_seen": start.samples_seen, "stops": _stops(out, start) + 1}
        out.write(STOPPED, json.dumps(here).encode() + b"\n")
        if here["stops"] < MOST:
            raise
        raise RunError(
            f"stopped {here['stops']} times in a row at {start.samples_seen:,} samples, each time "
            "before the first step; give the job more time (cluster.time, cluster.stop_seconds, "
            "cluster.minutes)"
        ) from None


def _stops(out: Prefix, start: Progress) -> int:
    """How often in a row the run was stopped here."""
    try:
        told = json.loads(out.read(STOPPED))
    except FileNotFoundError:
        return 0
    return int(told["stops"]) if told["samples_seen"] == start.samples_seen else 0
