"""What a record of a run is made of, and what keeps one. No sink knows of another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values lie between edges.

    Args:
        counts: (N,).
        edges: (N + 1,), rising.
    """

    counts: tuple[int, ...]
    edges: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that has been committed.

    Args:
        step: Its name.
        url: Of its folder.
        commit: What its record says.
    """

    step: str
    url: str
    commit: Mapping[str, Any]


class Sink(Protocol):
    """Keeps a record. `seen` is the place in the run, in samples."""

    def log(self, seen: int, values: Mapping[str, float]) -> None:
        """Keep numbers by name."""

    def show(self, seen: int, name: str, picture: NDArray[np.uint8]) -> None:
        """Keep a picture (H, W, 3)."""

    def spread(self, seen: int, histograms: Mapping[str, Histogram]) -> None:
        """Keep histograms by name."""

    def alert(self, title: str, text: str) -> None:
        """Tell people what they would want to be called for."""

    def saved(self, checkpoint: Saved) -> None:
        """Keep where a checkpoint is."""

    def close(self) -> None:
        """Write what is left; nothing comes after it."""
