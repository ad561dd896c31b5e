"""metrics.jsonl and the pictures of a run, which lie beside it, wherever that is."""

import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.image import encode_png
from data.local_files import extend_file
from data.storage import Prefix

METRICS = "metrics.jsonl"
SECONDS_BETWEEN_WRITES = 15.0
BYTES_A_SECOND = 1e6  # that are sent to a store, whose files cannot be appended to, at the most


def read_metrics(out: Prefix) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none if there is no such file.

    A number that was not finite is nan. A line that is being written, or was when its process was
    killed, is left out.
    """
    return _parse(_complete(out))


def _complete(out: Prefix) -> bytes:
    """The file's complete lines."""
    try:
        content = out.read(METRICS)
    except FileNotFoundError:
        return b""
    return content[: content.rfind(b"\n") + 1]


def _parse(content: bytes) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in content.decode().splitlines()]
    return [
        {name: math.nan if value is None else value for name, value in line.items()}
        for line in found
    ]


def _dump(lines: Iterable[Mapping[str, Any]]) -> bytes:
    """As JSON has it, which knows no nan: null."""
    return "".join(
        json.dumps({name: _plain(value) for name, value in line.items()}, allow_nan=False) + "\n"
        for line in lines
    ).encode()


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RunFiles:
    """Keeps lines and pictures in memory until they are written, by whichever thread.

    Args:
        out: The run.
        samples_seen: Where the run goes on: later lines, of a process that died, are dropped.

    Attributes:
        lines: All lines of the run.
        require: Called before each write; its error, if this may no longer write, is the write's.
    """

    def __init__(self, out: Prefix, samples_seen: int) -> None:
        self._out = out
        content = _complete(out)
        there = _parse(content)
        self.lines = [line for line in there if line["samples_seen"] <= samples_seen]
        self._written = len(self.lines) if len(self.lines) == len(there) and there else -1
        self._bytes = len(content)  # of the lines that are written
        self._pictures: dict[str, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()
        self.require: Callable[[], None] = lambda: None

    @property
    def pause(self) -> float:
        """Seconds between two writes: the longer the file is, the longer for a store."""
        if self._out.local:
            return SECONDS_BETWEEN_WRITES
        return max(SECONDS_BETWEEN_WRITES, self._bytes / BYTES_A_SECOND)

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
                self.require()
                for name, picture in pictures.items():
                    if self._pictures.get(name) is picture:
                        self._out.write(name, encode_png(picture))
                        self._pictures.pop(name)
                if len(lines) > self._written:  # else another thread has written more
                    self._write(lines)

        return write

    def _write(self, lines: tuple[dict[str, Any], ...]) -> None:
        """Append what is new where files can be; write all of it elsewhere, and at first."""
        folder = self._out.local
        new = _dump(lines[max(self._written, 0) :])
        if folder and self._written > 0:
            with self._out.errors("written"):
                extended = extend_file(folder / METRICS, self._bytes, new)
        else:
            extended = False
        if extended:
            self._bytes += len(new)
        else:
            content = _dump(lines)
            self._out.write(METRICS, content)
            self._bytes = len(content)
        self._written = len(lines)
