"""Work that nobody waits for: a bounded queue, and a thread that opens, feeds and closes a sink.

What a step pays for its record is the time to put a function into a queue.
"""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from data.say import say

T = TypeVar("T")
ROOM = 1024  # entries that wait at most; a step makes one at the most, and few steps do
WHOLE = "metrics.jsonl has every number"


class Behind(Generic[T]):
    """Calls functions in their order, with what `start` has made, in a thread.

    Nothing of what fails in there reaches the caller, but for a line that says so.

    Args:
        name: What it feeds, for messages.
        start: Makes the target, in the thread: it may take long.
        end: Called with it at last.
        room: Entries that may wait; more are left out, and counted.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], T],
        end: Callable[[T], None],
        room: int = ROOM,
    ) -> None:
        self.name, self._start, self._end = name, start, end
        self._queue: queue.Queue[Callable[[T], None] | None] = queue.Queue(room)
        self.missed = 0
        self._thread = threading.Thread(target=self._work, name=f"track {name}", daemon=True)
        self._thread.start()

    def put(self, call: Callable[[T], None]) -> None:
        """Have a function called, or, with no room left, not; takes no time."""
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            if not self.missed:
                say(f"{self.name} does not keep up; some entries are left out there; {WHOLE}")
            self.missed += 1

    def close(self, seconds: float) -> bool:
        """Wait for what is left, and for the end.

        Args:
            seconds: At the most; then the thread is left to itself.

        Returns:
            Whether all was done in time.
        """
        try:
            self._queue.put(None, timeout=seconds)
        except queue.Full:
            return False
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        calls = iter(self._queue.get, None)
        try:
            target = self._start()
            for call in calls:
                call(target)
            self._end(target)
        except Exception as error:  # whatever it is: a record is no reason to end a training
            reason = (str(error) or type(error).__name__).splitlines()[0]
            say(f"{self.name}: the record ends here ({reason}); {WHOLE}")
            for _ in calls:
                pass  # whoever closes must not wait for room; it is over if the end was reached
