"""The learning rate as a function of the samples seen."""

import math

from conf.enums import Decay
from conf.training import OptimizerConfig


def learning_rate(config: OptimizerConfig, samples_seen: int, total_samples: int) -> float:
    """The learning rate of the step that starts at `samples_seen`.

    A linear warm-up, then constant, or a half cosine that reaches 0 at `total_samples`
    (Loshchilov and Hutter 2017, equation 5, one period).
    """
    warmup = min(1.0, (samples_seen + 1) / max(config.warmup_samples, 1))
    if config.decay is Decay.constant:
        return config.lr * warmup
    share = min(1.0, samples_seen / total_samples)
    return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * share))
