"""Where in a model numbers stop being finite, and of which samples."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from data.corpus import Corpus

SHOWN_LAYERS = 10


@dataclass(slots=True)
class Diagnosis:
    """What a forward pass has shown.

    Attributes:
        first: The first layer whose output is not finite, or None.
        largest: By layer, the largest magnitude among its finite outputs.
    """

    first: str | None = None
    largest: dict[str, float] = field(default_factory=dict)

    def meet(self, name: str, output: object) -> None:
        """Note a layer's output."""
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return
        output = output.detach()
        finite = output.isfinite()
        if self.first is None and not bool(finite.all()):
            self.first = name
        most = output.abs().where(finite, torch.zeros_like(output)).max()
        self.largest[name] = max(self.largest.get(name, 0.0), float(most))

    def json(self) -> dict[str, Any]:
        """JSON-ready, with the few largest layers."""
        ordered = sorted(self.largest.items(), key=lambda item: -item[1])
        return {"first_not_finite": self.first, "largest": dict(ordered[:SHOWN_LAYERS])}


@contextmanager
def diagnosed(module: nn.Module) -> Iterator[Diagnosis]:
    """Watch every layer of a model that has no layers of its own, for the length of a block."""
    found = Diagnosis()
    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            if next(layer.children(), None) is None:
                handle = layer.register_forward_hook(
                    lambda _, given, output, name=name: found.meet(name, output)
                )
                hooks.callback(handle.remove)
        yield found


def weights_not_finite(module: nn.Module) -> list[str]:
    """Names of parameters that hold a number that is not finite."""
    return [
        name for name, weights in module.named_parameters() if not bool(weights.isfinite().all())
    ]


def sample_names(data: Corpus, places: Sequence[int]) -> list[str]:
    """Shard and key of the samples at some places, each as `URL/SHARD: KEY` or the like."""
    samples = [sample for place in places for sample in data.locate(range(place, place + 1))]
    return [data.datasets[one.dataset].name_of(one.shard, one.row) for one in samples]


def plain(value: float) -> float | str:
    """A number as JSON has it, which knows no nan."""
    return value if math.isfinite(value) else str(value)
