"""Averages of any length, rebuilt afterwards from a few that were kept while training went on.

Source: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models",
sections 3.1, 3.2 and appendix C. A length is `sigma_rel`, the standard deviation of the average's
profile over the training so far; an exponent `gamma` gives the same profile, t ** gamma.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Profile:
    """The weight of every moment of training in an average: t ** gamma up to `end`.

    Args:
        gamma: The exponent.
        end: Samples seen when the average was taken.
    """

    gamma: float
    end: float


def gamma_of(sigma_rel: float) -> float:
    """The exponent of a profile with a given relative length.

    The greatest root of (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = sigma_rel^2.

    Args:
        sigma_rel: In (0, 12 ** -0.5]; the most is that of a plain mean.
    """
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return max(0.0, float(roots.real.max()))


def power_weight(samples_seen: int, batch_size: int, gamma: float) -> float:
    """How far a power-function average moves towards the weights after a step.

    Args:
        samples_seen: The step's samples included.
        batch_size: Samples of a step.
        gamma: The exponent.
    """
    return float(1.0 - (1.0 - batch_size / samples_seen) ** (gamma + 1))


def inner_product(one: Profile, other: Profile) -> float:
    """The integral of the product of two profiles, each of integral 1, over time."""
    first, last = min(one.end, other.end), max(one.end, other.end)
    late = one.gamma if one.end == last else other.gamma
    sum_of_both = one.gamma + other.gamma + 1
    scale = (one.gamma + 1) * (other.gamma + 1) / (sum_of_both * last)
    return float(scale * (first / last) ** late)


def coefficients(kept: Sequence[Profile], wanted: Profile) -> NDArray[np.float64]:
    """By what kept averages are multiplied so that their sum is nearest to a wanted one.

    Least squares over the profiles, then scaled to a sum of 1, which the wanted profile's integral
    asks for and the solution has up to its error.

    Args:
        kept: Of the averages that there are, none of them twice.
        wanted: Not later than the last of them.

    Returns:
        (number of kept averages,)
    """
    products = np.array([[inner_product(one, other) for other in kept] for one in kept])
    targets = np.array([inner_product(one, wanted) for one in kept])
    # The profiles are nearly dependent; what is below double precision's reach is left out.
    solution = np.linalg.lstsq(products, targets, rcond=1e-13)[0]
    return np.asarray(solution / solution.sum())


def residual(kept: Sequence[Profile], wanted: Profile) -> float:
    """What is left of the wanted profile, as a share of its norm: 0 is a perfect rebuild."""
    found = coefficients(kept, wanted)
    products = np.array([[inner_product(one, other) for other in kept] for one in kept])
    targets = np.array([inner_product(one, wanted) for one in kept])
    norm = inner_product(wanted, wanted)
    left = norm - 2 * found @ targets + found @ products @ found
    return math.sqrt(max(left, 0.0) / norm)
