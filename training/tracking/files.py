"""metrics.jsonl and the pictures of a run, which lie beside it, wherever that is."""

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.image import encode_png
from data.storage import Prefix

METRICS = "metrics.jsonl"


def read_metrics(out: Prefix) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none if there is no such file."""
    try:
        lines = out.read(METRICS).decode().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


class RunFiles:
    """Keeps lines and pictures in memory until they are written, by whichever thread.

    Args:
        out: The run.
        samples_seen: Where the run goes on: later lines, of a process that died, are dropped.

    Attributes:
        lines: All lines of the run.
    """

    def __init__(self, out: Prefix, samples_seen: int) -> None:
        self._out = out
        there = read_metrics(out)
        self.lines = [line for line in there if line["samples_seen"] <= samples_seen]
        self._written = len(self.lines) if len(self.lines) == len(there) and there else -1
        self._pictures: dict[str, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    def add(self, line: dict[str, Any]) -> None:
        """Keep a line."""
        self.lines.append(line)

    def add_picture(self, name: str, picture: NDArray[np.uint8]) -> None:
        """Keep a picture (H, W, 3), to be the file `name`."""
        self._pictures[name] = picture

    def writer(self) -> Callable[[], None]:
        """What writes all that is there now, whenever and in whichever thread it is called."""
        lines, pictures = tuple(self.lines), dict(self._pictures)

        def write() -> None:
            with self._lock:
                for name, picture in pictures.items():
                    if self._pictures.get(name) is picture:
                        self._out.write(name, encode_png(picture))
                        self._pictures.pop(name)
                if len(lines) > self._written:  # else another thread has written more
                    content = "".join(json.dumps(line) + "\n" for line in lines)
                    self._out.write(METRICS, content.encode())
                    self._written = len(lines)

        return write
