"""What a sweep is: the settings that all trials share, those that vary, and what is refused.

Owns the rules of `ldm train -m` and `ldm evaluate -m`. A sweep goes by a figure, so nothing that
changes what that figure measures may vary.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from conf.compose import compose_typed, config_dict
from conf.enums import SweepSampler
from conf.errors import UserError
from conf.rules import check, refuse_credentials
from conf.schema import SweepEvaluateCommand, SweepTrainCommand
from conf.space import Choices, Dimension, Interval, override, parse_space, quoted
from data.claim import claimed
from data.storage import Prefix
from launch.sweep.objective import OBJECTIVES, TRAINING, Objective

LONGEST_TAG = 64  # of W&B


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A sweep as its command line describes it.

    Args:
        objective: What its trials run, and what they are compared by.
        config: Of the first trial that the values listed first would make, and of the sweep.
        fixed: Overrides that every trial has.
        dimensions: What varies.
    """

    objective: Objective
    config: SweepTrainCommand | SweepEvaluateCommand
    fixed: tuple[str, ...]
    dimensions: tuple[Dimension, ...]

    @property
    def trials(self) -> int:
        """How many there are in all."""
        return len(self.grid) if self.grid else self.config.sweep.trials

    @property
    def grid(self) -> list[dict[str, str]]:
        """Of a grid, the values of every trial by its number; empty for other samplers."""
        if self.config.sweep.sampler is not SweepSampler.grid:
            return []
        listed = [dim for dim in self.dimensions if isinstance(dim, Choices)]
        names = [dim.name for dim in listed]
        return [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*(dim.values for dim in listed))
        ]


def read_plan(overrides: list[str], objective: Objective = TRAINING) -> SweepPlan:
    """Understand and check the overrides of `ldm train -m` or `ldm evaluate -m`.

    Raises:
        UserError: They are no sweep, or the first trial or a single value could not be run.
    """
    command = f"{objective.command} -m"
    fixed, swept = parse_space(overrides)
    for name in (dim.name for dim in swept if _is_own(dim.name, objective)):
        raise UserError(name, "is of the sweep as a whole", f"give one value: {name}=...")
    told = compose_typed(command, [*fixed, *_first(swept)])
    if told.sweep.space:
        swept += _more(told.sweep.space, {_name(text) for text in overrides}, objective)
        told = compose_typed(command, [*fixed, *_first(swept)])
    if not swept:
        remedy = "list values, as optimizer.lr=1e-4,3e-4, or choose a space, as sweep=lr_batch"
        raise UserError("-m", "has nothing to vary", remedy)
    check(told)
    objective.require(told)
    _check(told, swept)
    for changed, value in _alternatives(swept):
        others = [dim for dim in swept if dim.name != changed]
        other = compose_typed(command, [*fixed, *_first(others), f"{changed}={value}"])
        refuse_credentials(other)  # trials are kept with their values
        if objective.measured(other) != objective.measured(told):
            raise UserError(
                f"{changed}={value}",
                f"changes what the {objective.name} measures, by which trials are compared",
                "make a sweep of its own for each value",
            )
    shared = [text for text in fixed if not _is_own(_name(text), objective)]
    return SweepPlan(objective, told, tuple(shared), tuple(swept))


def identity(plan: SweepPlan) -> dict[str, Any]:
    """What makes a sweep the one that it is, JSON-ready: another is refused in the same folder."""
    settings = {k: v for k, v in config_dict(plan.config).items() if k not in plan.objective.free}
    space = {dim.name: _described(dim) for dim in plan.dimensions}
    sampler, seed = plan.config.sweep.sampler.value, plan.config.sweep.seed
    mark = plan.objective.mark
    return {
        **settings,
        "command": mark,
        "space": space,
        "sweep": {"sampler": sampler, "seed": seed},
    }


def objective_in(out: Prefix) -> Objective | None:
    """What the trials of the sweep at a prefix are compared by; None if there is no sweep."""
    mark = (claimed(out) or {}).get("command")
    return next((one for one in OBJECTIVES if one.mark == mark), None)


def swept_in(out: Prefix) -> list[Dimension]:
    """What varies in the sweep at a prefix."""
    settings = claimed(out)
    assert settings is not None
    return [
        Choices(name, tuple(told)) if isinstance(told, list) else Interval(name, **told)
        for name, told in settings["space"].items()
    ]


def trial_overrides(plan: SweepPlan, values: dict[str, str], out: str, group: str) -> list[str]:
    """The overrides of one trial's command.

    Args:
        plan: The sweep.
        values: Of what varies, as they are written on a command line.
        out: Where the trial's run goes.
        group: Name of the sweep, for W&B if `tracking.group` names no other one.
    """
    values_told = [f"{name}={value}" for name, value in values.items()]
    own = [override("out", out)]
    if isinstance(plan.config, SweepTrainCommand):  # evaluations are not tracked
        told = plan.config.tracking
        tags = [*told.tags, *(text[:LONGEST_TAG] for text in values_told)]
        own += [
            override("tracking.group", told.group or group),
            f"tracking.tags=[{','.join(map(quoted, tags))}]",
        ]
    return [*plan.fixed, *values_told, *own]


def _check(config: SweepTrainCommand | SweepEvaluateCommand, swept: list[Dimension]) -> None:
    cluster, parallel = config.cluster, config.sweep.parallel
    if cluster.port and cluster.processes > 1 and parallel > 1:
        wrong = f"is one port, and the ranks of {parallel} trials at a time meet at one each"
        raise UserError(f"cluster.port={cluster.port}", wrong, "leave it out")
    intervals = [dim.name for dim in swept if isinstance(dim, Interval)]
    listed = [dim.name for dim in swept if isinstance(dim, Choices)]
    if config.sweep.sampler is SweepSampler.grid and intervals:
        raise UserError(
            f"{intervals[0]}=interval(...)",
            "has no end of values, and sweep.sampler=grid tries all",
            "list some, or choose sweep.sampler=tpe",
        )
    if config.sweep.sampler is SweepSampler.cmaes and (listed or len(intervals) < 2):
        wrong = f"cannot choose {listed[0]} from a list" if listed else "needs two things to vary"
        remedy = "give two intervals or more, or choose sweep.sampler=tpe"
        raise UserError("sweep.sampler=cmaes", wrong, remedy)


def _more(space: list[str], given: set[str], objective: Objective) -> list[Dimension]:
    """What `sweep.space` varies and the command line says nothing of."""
    fixed, swept = parse_space(space)
    for text in fixed:
        raise UserError(f"sweep.space=['{text}']", "has one value", "list several, or leave it out")
    for name in (dim.name for dim in swept if _is_own(dim.name, objective)):
        raise UserError(f"sweep.space=['{name}=...']", "is of the sweep as a whole", "leave it out")
    return [dim for dim in swept if dim.name not in given]


def _first(swept: list[Dimension]) -> list[str]:
    return [f"{dim.name}={next(_ends(dim))}" for dim in swept]


def _alternatives(swept: list[Dimension]) -> Iterator[tuple[str, str]]:
    """Every value that is not the first of its setting; of an interval, the other end."""
    for dim in swept:
        yield from ((dim.name, value) for value in itertools.islice(_ends(dim), 1, None))


def _ends(dim: Dimension) -> Iterator[str]:
    yield from dim.values if isinstance(dim, Choices) else (str(dim.low), str(dim.high))


def _described(dim: Dimension) -> Any:
    if isinstance(dim, Choices):
        return list(dim.values)
    return {"low": dim.low, "high": dim.high, "log": dim.log, "whole": dim.whole}


def _name(text: str) -> str:
    return text.partition("=")[0]


def _is_own(name: str, objective: Objective) -> bool:
    """Whether a setting is of the sweep, and not of what each trial runs."""
    return name.partition(".")[0] == "sweep" or name in objective.own
