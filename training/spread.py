"""Histograms of a model's weights."""

import torch
from torch import Tensor

from training.engine.shares import whole_weights
from training.engine.strategy import Engine
from training.tracking.sink import Histogram

BINS = 64


def weight_histograms(engine: Engine) -> dict[str, Histogram]:
    """A histogram of every parameter whose weights are finite, as `weights/NAME`. Collective."""
    names = [name for name, _ in engine.module.named_parameters()]
    return {
        f"weights/{name}": histogram(weights)
        for name, weights in zip(names, whole_weights(engine), strict=True)
        if bool(weights.isfinite().all())
    }


def histogram(values: Tensor) -> Histogram:
    """A histogram of finite values over their range, in equal bins; the last one has both edges."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(values.float(), BINS, low, high)
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    return Histogram(tuple(int(x) for x in counts.tolist()), tuple(edges.tolist()))
