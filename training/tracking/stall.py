"""Tells people that a training does not get on. It ends nothing; `engine.heartbeat` does, later."""

import threading
import time
from collections.abc import Callable
from typing import Any

LONGEST_PAUSE = 5.0  # seconds between two looks


class Stall:
    """Looks, in a thread, whether something changes; to be used as a context.

    Args:
        seconds: After so long without a change people are told, once; 0 is never.
        beats: What has to change.
        tell: Called with a line, in the thread.
    """

    def __init__(
        self, seconds: float, beats: Callable[[], Any], tell: Callable[[str], None]
    ) -> None:
        self._seconds, self._beats, self._tell = seconds, beats, tell
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall", daemon=True)

    def __enter__(self) -> "Stall":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._seconds:
            self._thread.join()

    def _watch(self) -> None:
        last, since, told = self._beats(), time.monotonic(), False
        while not self._stop.wait(min(LONGEST_PAUSE, self._seconds / 8)):
            now, quiet = self._beats(), time.monotonic() - since
            if now != last:
                if told:
                    self._tell(f"it goes on, after {quiet:,.0f} s")
                last, since, told = now, time.monotonic(), False
            elif quiet > self._seconds and not told:
                self._tell(f"no progress for {quiet:,.0f} s")
                told = True
