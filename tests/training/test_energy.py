"""The energy score: its formula, and that nothing scores better than the truth."""

import numpy as np
import pytest
import torch
from torch import Tensor

from training.energy import energy_scores

SIZE, SAMPLES = 8, 4000


def normal(*shape: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def mean_score(made: Tensor, real: Tensor) -> tuple[float, float]:
    """The mean over samples and its standard error."""
    scores = energy_scores(made, real)
    return float(scores.mean()), float(scores.std() / len(scores) ** 0.5)


def test_it_is_its_formula() -> None:
    made, real = normal(3, 4, 2, 5, 5, seed=0), normal(3, 2, 5, 5, seed=1)

    def distance(one: Tensor, other: Tensor) -> float:
        return float((one - other).square().mean().sqrt())

    for draws, target, score in zip(made, real, energy_scores(made, real), strict=True):
        to_real = sum(distance(one, target) for one in draws) / 4
        pairs = [distance(draws[i], draws[j]) for i in range(4) for j in range(4) if i != j]
        assert float(score) == pytest.approx(to_real - sum(pairs) / len(pairs) / 2)


def test_no_draws_score_better_than_those_of_the_truth() -> None:
    """The real ones are N(caption, 1); draws are too narrow, too wide, off, or of no caption."""
    caption, real = normal(SAMPLES, SIZE, seed=2), normal(SAMPLES, SIZE, seed=3)
    noise = normal(SAMPLES, 3, SIZE, seed=4)
    truth, error = mean_score(caption[:, None] + noise, caption + real)
    wrong = {
        "too alike": caption[:, None] + 0.5 * noise,
        "all the same": (caption[:, None] + 0 * noise),
        "too wide": caption[:, None] + 2 * noise,
        "pushed too far": 2 * caption[:, None] + noise,
        "of no caption": 2**0.5 * noise,
    }
    for name, made in wrong.items():
        score, other_error = mean_score(made, caption + real)
        assert score - truth > 4 * (error**2 + other_error**2) ** 0.5, name


def test_few_draws_have_no_bias() -> None:
    real, noise = normal(SAMPLES, SIZE, seed=5), normal(SAMPLES, 8, SIZE, seed=6)
    few, few_error = mean_score(noise[:, :2], real)
    many, many_error = mean_score(noise, real)
    assert abs(few - many) < 3 * (few_error**2 + many_error**2) ** 0.5
