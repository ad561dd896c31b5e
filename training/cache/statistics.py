"""What is measured over all latents of a cache, exactly, in whatever order shards are made."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from training.cache.assemble import StoredView
from training.models.autoencoder import LOG_VARIANCE_RANGE
from training.numbers import as_tensor

# Sums over a shard, a list a channel or one number.
SUMS = ("total", "squares", "variance")


def shard_statistics(views: Iterable[StoredView], channels: int) -> dict[str, Any]:
    """Sums over the latents of a shard, JSON-ready.

    Each image is summed by itself and then added in the shard's order, so that the last bit does
    not depend on what was encoded together.

    Args:
        views: What is stored, in order.
        channels: Of a latent; more than these are log-variances.
    """
    sums = {name: np.zeros(channels) for name in SUMS}
    count, squared_error, max_error = 0, 0.0, 0.0
    for view in views:
        values = as_tensor(view.values).double().numpy()
        mean, log_variance = values[:channels], values[channels:]
        variance = np.exp(log_variance.clip(*LOG_VARIANCE_RANGE)) if len(log_variance) else None
        sums["total"] += mean.sum((1, 2))
        sums["squares"] += np.square(mean).sum((1, 2))
        if variance is not None:
            sums["variance"] += variance.sum((1, 2))
        count += mean[0].size
        squared_error += view.squared_error
        max_error = max(max_error, view.max_error)
    lists = {name: values.tolist() for name, values in sums.items()}
    return {"count": count, **lists, "squared_error": squared_error, "max_error": max_error}


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation and errors over all shards.

    Sums are rounded once, so they do not depend on the order or the number of ranks.

    Returns:
        Per channel `mean` and `std` of the latents that are drawn, whose variance is that of the
        means plus the mean of the variances, and `posterior_std`; `rms_error` and `max_error` of
        the number format in units of the standard deviation over all channels.
    """
    count = sum(part["count"] for part in parts)
    sums = {name: _summed([part[name] for part in parts]) / count for name in SUMS}
    mean, variance = sums["total"], sums["variance"]
    std = np.sqrt(np.maximum(sums["squares"] - mean**2 + variance, 0))
    spread = float(np.sqrt(np.mean(np.square(std)))) or 1.0
    error = math.fsum(part["squared_error"] for part in parts) / (count * len(mean))
    return {
        "mean": tuple(mean.tolist()),
        "std": tuple(std.tolist()),
        "posterior_std": tuple(np.sqrt(variance).tolist()),
        "rms_error": math.sqrt(error) / spread,
        "max_error": max(part["max_error"] for part in parts) / spread,
    }


def _summed(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array([math.fsum(column) for column in zip(*rows, strict=True)])
