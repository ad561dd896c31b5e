"""How the values of a trial are chosen. Each choice is keyed by (sweep.seed, the trial's number).

So a sweep that goes on draws nothing twice, and two workers do not draw the same. Refuses pickled
state, as Optuna's own CMA-ES keeps it in the database: ours is made again from the trials.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from conf.enums import SweepSampler
from conf.space import Choices, Dimension, Interval
from launch.sweep.plan import SweepPlan

Space = dict[str, BaseDistribution]
SPREAD = 0.25  # of the first generation, in widths of the intervals


def build_sampler(plan: SweepPlan) -> BaseSampler:
    """The sampler of a sweep."""
    told = plan.config.sweep
    match told.sampler:
        case SweepSampler.grid:
            return Given(plan.grid)
        case SweepSampler.tpe:
            return Keyed(
                told.seed, lambda seed: TPESampler(seed=seed, n_startup_trials=told.startup_trials)
            )
        case SweepSampler.cmaes:
            intervals = [dim for dim in plan.dimensions if isinstance(dim, Interval)]
            return Evolution(told.seed, intervals)


def distributions(swept: Iterable[Dimension]) -> Space:
    """What varies, as Optuna has it; a choice is among what is written on a command line."""
    found: Space = {}
    for dim in swept:
        if isinstance(dim, Choices):
            found[dim.name] = CategoricalDistribution(dim.values)
        elif dim.whole:
            found[dim.name] = IntDistribution(int(dim.low), int(dim.high), log=dim.log)
        else:
            found[dim.name] = FloatDistribution(dim.low, dim.high, log=dim.log)
    return found


def key_of(seed: int, number: int) -> int:
    """A seed for one trial: 32 bits that neighbouring seeds and numbers do not share."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


class Given(BaseSampler):
    """Takes the values of the trial's number from a list.

    Args:
        points: The values of every trial.
    """

    def __init__(self, points: list[dict[str, str]]) -> None:
        self._points = points

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """None: every value is looked up by itself."""
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        """None."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> str:
        """The value of one setting."""
        return self._points[trial.number][name]


class Keyed(BaseSampler):
    """Another sampler, seeded anew for each trial.

    Args:
        seed: Of the sweep.
        build: Makes the sampler with a seed.
    """

    def __init__(self, seed: int, build: Callable[[int], BaseSampler]) -> None:
        self._seed, self._build = seed, build
        self._of: tuple[int, BaseSampler] | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """As that sampler has it."""
        return self._at(trial).infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        """As that sampler has it."""
        return self._at(trial).sample_relative(study, trial, space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        """As that sampler has it."""
        return self._at(trial).sample_independent(study, trial, name, distribution)

    def _at(self, trial: FrozenTrial) -> BaseSampler:
        if self._of is None or self._of[0] != trial.number:
            self._of = trial.number, self._build(key_of(self._seed, trial.number))
        return self._of[1]


class Evolution(BaseSampler):
    """CMA-ES, whose state is made again for each trial from those that have ended.

    Args:
        seed: Of the sweep.
        intervals: All that varies.
    """

    def __init__(self, seed: int, intervals: list[Interval]) -> None:
        self._seed, self._intervals = seed, intervals

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """All that varies."""
        return distributions(self._intervals)

    def sample_relative(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        """One point, drawn from what whole generations of complete trials have shown."""
        from cmaes import CMA

        size = len(self._intervals)
        state = CMA(
            mean=np.full(size, 0.5),
            sigma=SPREAD,
            bounds=np.tile([0.0, 1.0], (size, 1)),
            seed=key_of(self._seed, trial.number),
        )
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        ended = [(self._place(one), one.value) for one in complete]
        for i in range(0, len(ended) - state.population_size + 1, state.population_size):
            state.tell(ended[i : i + state.population_size])
        return {
            one.name: at(one, share)
            for one, share in zip(self._intervals, state.ask(), strict=True)
        }

    def sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        """Of what was not drawn together, which is nothing while the sweep is what it was."""
        sampler = RandomSampler(seed=key_of(self._seed, trial.number))
        return sampler.sample_independent(study, trial, name, distribution)

    def _place(self, trial: FrozenTrial) -> np.ndarray:
        """Where in the unit cube a trial lies."""
        return np.array([share_of(one, trial.params[one.name]) for one in self._intervals])


def at(interval: Interval, share: float) -> float | int:
    """The number at a share of an interval, from 0 to 1, by ratios where those count."""
    scale: Callable[[float], float] = math.log if interval.log else float
    low, high = scale(interval.low), scale(interval.high)
    value = low + (high - low) * float(share)
    value = math.exp(value) if interval.log else value
    value = min(max(value, interval.low), interval.high)
    return round(value) if interval.whole else value


def share_of(interval: Interval, value: float) -> float:
    """Where a number lies in an interval: the other way round."""
    scale: Callable[[float], float] = math.log if interval.log else float
    low, high = scale(interval.low), scale(interval.high)
    return (scale(value) - low) / (high - low)
