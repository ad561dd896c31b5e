"""How fast each rank is by itself: what it does before it meets the others in the backward pass.

Ranks of one run take all steps together, so their images/s are the same; what tells a slow one is
the time that it reads and computes forward, in which it waits for nobody (but for ZeRO-3's layers).
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from training.engine.strategy import Engine

OfBatch = Callable[[Any], Mapping[str, Tensor]]


class Pace:
    """Adds up a rank's own seconds since the last line of metrics.

    Args:
        device: Where it computes. A GPU is not waited for: it notes times itself.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._events: list[tuple[Any, Any]] = []
        self.seconds, self.samples = 0.0, 0

    def timed(self, losses: OfBatch) -> OfBatch:
        """The same function; its calls count."""

        def call(batch: Any) -> Mapping[str, Tensor]:
            if self._cuda:
                pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                pair[0].record()
                values = losses(batch)
                pair[1].record()
                self._events.append((pair[0], pair[1]))
                return values
            began = time.perf_counter()
            values = losses(batch)
            self.seconds += time.perf_counter() - began
            return values

        return call

    def step(self, waited: float, samples: int) -> None:
        """Count a step that is done: all that was computed in it is, too.

        Args:
            waited: Seconds that this rank waited for its data.
            samples: Of this rank.
        """
        self.seconds += waited + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        self.samples += samples
        self._events.clear()

    def figures(self, engine: Engine) -> dict[str, float]:
        """Of the slowest and the fastest rank; the next interval begins. Collective."""
        ranks = engine.gather(self.samples / max(self.seconds, 1e-9))
        self.seconds, self.samples = 0.0, 0
        return {
            "slowest_rank_images_per_second": min(ranks),
            "fastest_rank_images_per_second": max(ranks),
        }
