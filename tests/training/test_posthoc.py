"""Power-function averages: their profiles, and any length rebuilt from two that were kept."""

import numpy as np
import pytest
from numpy.typing import NDArray

from training.posthoc import (
    Profile,
    coefficients,
    gamma_of,
    inner_product,
    power_weight,
    residual,
)

BATCH, STEPS, SNAPSHOTS = 8, 4000, 32
LONGEST = 12**-0.5  # the deviation of a plain mean


def profile(of: Profile, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights of all moments, of integral 1."""
    scale = (of.gamma + 1) / of.end ** (of.gamma + 1)
    return np.where(times <= of.end, scale * times**of.gamma, 0.0)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.25, LONGEST])
def test_a_length_is_the_deviation_of_its_profile(sigma_rel: float) -> None:
    gamma = gamma_of(sigma_rel)
    times = np.linspace(0, 1, 1_000_001)
    weights = profile(Profile(gamma, 1.0), times)
    mean = np.trapezoid(weights * times, times)
    variance = np.trapezoid(weights * (times - mean) ** 2, times)
    assert np.sqrt(variance) == pytest.approx(sigma_rel, rel=1e-4)


def test_lengths_of_the_paper() -> None:
    """Karras et al. 2024 keep the averages of gamma 16.97 and 6.94, which are 0.05 and 0.10."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)


def test_a_running_average_has_its_profile() -> None:
    """After n steps a step k weighs (k ** (gamma + 1) - (k - 1) ** (gamma + 1)) / n ** same."""
    gamma, steps = 3.5, 50
    weights = np.zeros(steps)
    for step in range(steps):
        weight = power_weight((step + 1) * BATCH, BATCH, gamma)
        weights *= 1 - weight
        weights[step] += weight
    powers = np.arange(steps + 1.0) ** (gamma + 1)
    np.testing.assert_allclose(weights, np.diff(powers) / steps ** (gamma + 1), rtol=1e-12)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Profile(3, 60), Profile(7, 100)),
        (Profile(7, 60), Profile(3, 100)),
        (Profile(2, 50), Profile(5, 50)),
    ],
)
def test_inner_products_are_integrals(one: Profile, other: Profile) -> None:
    times = np.linspace(0, 100, 1_000_001)
    wanted = np.trapezoid(profile(one, times) * profile(other, times), times)
    assert inner_product(one, other) == pytest.approx(wanted, rel=1e-4)
    assert inner_product(other, one) == inner_product(one, other)


@pytest.fixture(scope="module")
def walk() -> NDArray[np.float64]:
    """Weights that wander, one row a step."""
    return np.cumsum(np.random.default_rng(0).normal(size=(STEPS, 5)), axis=0)


def averages(
    walk: NDArray[np.float64], gamma: float, every: int
) -> dict[Profile, NDArray[np.float64]]:
    """The running average of some gamma, as it was after every so many steps."""
    average, kept = np.zeros(walk.shape[1]), {}
    for step, weights in enumerate(walk, start=1):
        average = average + power_weight(step * BATCH, BATCH, gamma) * (weights - average)
        if step % every == 0:
            kept[Profile(gamma, step * BATCH)] = average
    return kept


@pytest.mark.parametrize("sigma_rel", [0.04, 0.07, 0.12, 0.15])
@pytest.mark.parametrize("end", [STEPS, STEPS // 2])
def test_another_length_is_rebuilt_from_two(
    walk: NDArray[np.float64], sigma_rel: float, end: int
) -> None:
    every = STEPS // SNAPSHOTS
    kept = averages(walk, gamma_of(0.05), every) | averages(walk, gamma_of(0.10), every)
    wanted = Profile(gamma_of(sigma_rel), end * BATCH)
    there = {one: value for one, value in kept.items() if one.end <= wanted.end}
    share = coefficients(list(there), wanted)
    rebuilt = share @ np.array(list(there.values()))
    truth = averages(walk, wanted.gamma, end)[wanted]
    assert np.abs(rebuilt - truth).max() < 2e-3 * np.abs(walk).max()
    assert residual(list(there), wanted) < 0.02
    assert share.sum() == pytest.approx(1, abs=1e-12)


def test_what_was_kept_is_given_back(walk: NDArray[np.float64]) -> None:
    kept = [Profile(gamma, end) for gamma in (16.97, 6.94) for end in (500.0, 1000.0)]
    np.testing.assert_allclose(coefficients(kept, kept[1]), [0, 1, 0, 0], atol=1e-9)


def test_a_length_out_of_reach_has_a_large_residual() -> None:
    kept = [Profile(gamma_of(0.05), 1000.0)]
    assert residual(kept, Profile(gamma_of(0.25), 1000.0)) > 0.5
