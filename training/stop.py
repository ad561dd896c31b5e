"""Being told to stop: signals become a flag that the loop reads between steps."""

import signal
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
