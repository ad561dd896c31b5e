"""Being told to stop: signals become a flag that the loop reads between steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from data.progress import say

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# So that a scheduler requeues: EX_TEMPFAIL of sysexits.h.
PREEMPTED_EXIT_CODE = 75


class StopFlag:
    """Set by the first signal; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.requested = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """A flag that SIGTERM, SIGUSR1 and Ctrl-C set for the length of a block."""
    flag = StopFlag()
    before = {number: signal.signal(number, flag._handle) for number in SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Preempted(Exception):
    """The run was told to stop and has saved a checkpoint."""


def preempted(samples_seen: int) -> Preempted:
    """Say where the run stopped."""
    say(
        f"stopped after {samples_seen:,} samples, checkpoint saved; "
        "the same command goes on from there"
    )
    return Preempted()
