"""Being told to stop: signals, and a time limit, that the loop asks for between steps."""

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from data.process import process_age

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
        minutes: Since this process began; None is no limit.
        checkpoint_bytes: That this rank writes, for as long as nobody has timed it.
    """

    LEAST_MARGIN = 2.0  # seconds
    RATE = 200e6  # bytes that a rank writes in a second; `ldm plan` assumes as much
    STEPS = 100  # that are looked back on: one that compiles is forgotten in time

    def __init__(self, minutes: float | None, checkpoint_bytes: int) -> None:
        began = time.monotonic() - process_age()
        self._end = None if minutes is None else began + 60 * minutes
        self._untimed = checkpoint_bytes / self.RATE
        self._steps: deque[float] = deque(maxlen=self.STEPS)

    def step(self, seconds: float) -> None:
        """Note how long a step took, the wait for its data included."""
        self._steps.append(seconds)

    def near(self, save_seconds: float) -> bool:
        """Whether it is time to stop: with room for a step and two checkpoints.

        Args:
            save_seconds: That the last checkpoint took; 0 if there was none.
        """
        saving = save_seconds or self._untimed
        margin = max(max(self._steps, default=0.0) + 2 * saving, self.LEAST_MARGIN)
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
