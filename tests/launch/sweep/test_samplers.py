import math
from collections.abc import Callable
from functools import cache
from typing import Any

import optuna
import pytest

from conf.space import Interval
from launch.sweep.importance import importances
from launch.sweep.plan import SweepPlan, read_plan
from launch.sweep.record import Outcome, Trial
from launch.sweep.samplers import at, build_sampler, distributions, share_of

BASE = ("data.url=a", "validation.url=v", "out=/sweeps/x", "train.samples=100")
LR = "optimizer.lr=tag(log,interval(1e-5,1e-3))"
DECAY = "optimizer.weight_decay=interval(0,1)"


@cache
def plan_of(*told: str) -> SweepPlan:
    return read_plan([*BASE, *told])


def optimised(
    plan: SweepPlan, loss: Callable[[dict[str, Any]], float], trials: int, restart: bool = False
) -> list[dict[str, Any]]:
    """Values of trials one after the other; with `restart` by a new sampler for each."""
    study = optuna.create_study(sampler=build_sampler(plan))
    space = distributions(plan.dimensions)
    for _ in range(trials):
        if restart:
            study.sampler = build_sampler(plan)
        trial = study.ask(space)
        study.tell(trial, loss(trial.params))
    return [trial.params for trial in study.trials]


def bowl(params: dict[str, Any]) -> float:
    """Least at a learning rate of 2e-4 and a decay of 0.3."""
    lr, decay = params["optimizer.lr"], params["optimizer.weight_decay"]
    return (math.log10(lr) - math.log10(2e-4)) ** 2 + (decay - 0.3) ** 2


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_worker_that_is_started_again_draws_what_it_would_have_drawn(sampler: str) -> None:
    plan = plan_of(f"sweep.sampler={sampler}", LR, DECAY)
    straight, again = (optimised(plan, bowl, 12, restart) for restart in (False, True))
    assert straight == again
    assert len({params["optimizer.lr"] for params in straight}) == 12


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_later_trials_are_better_than_those_by_chance(sampler: str) -> None:
    plan = plan_of(f"sweep.sampler={sampler}", LR, DECAY)
    losses = [bowl(params) for params in optimised(plan, bowl, 40)]
    assert sum(losses[-8:]) < 0.4 * sum(losses[:8])


def test_a_grid_gives_each_number_its_own_combination() -> None:
    plan = plan_of("optimizer.lr=1e-4,3e-4", "batch_size=8,16,32")
    drawn = optimised(plan, lambda params: 0.0, 6)
    assert drawn == plan.grid
    assert len({tuple(params.values()) for params in drawn}) == 6


@pytest.mark.parametrize(
    "interval",
    [Interval("a", 1e-5, 1e-3, True, False), Interval("a", -2, 3, False, False)],
)
def test_shares_of_an_interval_go_both_ways(interval: Interval) -> None:
    assert at(interval, 0) == interval.low and at(interval, 1) == interval.high
    for share in (0.0, 0.3, 1.0):
        assert share_of(interval, at(interval, share)) == pytest.approx(share)
    assert at(Interval("a", 1e-5, 1e-3, True, False), 0.5) == pytest.approx(1e-4)
    assert at(Interval("a", 1, 4, False, True), 0.5) == 2


def test_what_mattered_is_found() -> None:
    plan = plan_of("sweep.sampler=tpe", LR, DECAY)
    trials = []
    for i in range(40):
        lr, decay = at(plan.dimensions[0], (7 * i % 40) / 40), (11 * i % 40) / 40  # type: ignore[arg-type]
        loss = (math.log10(lr) + 4) ** 2 + 0.01 * decay
        values = {"optimizer.lr": f"{lr:.6g}", "optimizer.weight_decay": f"{decay:.6g}"}
        trials.append(Trial(i, values, [], Outcome.complete, loss, 1.0, []))
    shares = importances(trials, list(plan.dimensions))
    assert next(iter(shares)) == "optimizer.lr"
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["optimizer.lr"] > 0.8
    assert importances(trials[:7], list(plan.dimensions)) == {}
