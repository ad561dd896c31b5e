"""Being told to stop: signals, and a time limit, that the loop asks for between steps."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopFlag:
    """Set by the first signal; a second Ctrl-C interrupts at once.

    Args:
        on_request: Called within the signal's handler.
    """

    def __init__(self, on_request: Callable[[], None]) -> None:
        self.requested = False
        self.on_request = on_request

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        self.on_request()


class Deadline:
    """When a training that may take only so long has to save and stop.

    Args:
        minutes: From now on; None is no limit.
    """

    LEAST_MARGIN = 2.0  # seconds

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def near(self, save_seconds: float) -> bool:
        """Whether it is time to stop, if a checkpoint takes so long: with room for two."""
        margin = max(2 * save_seconds, self.LEAST_MARGIN)
        return self._end is not None and time.monotonic() > self._end - margin


@contextmanager
def stop_flag(on_request: Callable[[], None]) -> Iterator[StopFlag]:
    """A flag that SIGTERM, SIGUSR1 and Ctrl-C set for the length of a block.

    Args:
        on_request: Called with each of them; must be quick and wait for nothing.
    """
    flag = StopFlag(on_request)
    before = {number: signal.signal(number, flag._handle) for number in SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
