"""What a sweep is: the settings that all trials share, those that vary, and what is refused.

Owns the rules of `ldm train -m`. A sweep goes by the validation loss, so nothing that changes what
that loss measures may vary.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from conf.compose import compose_typed, config_dict
from conf.enums import SweepSampler
from conf.errors import UserError
from conf.rules import check
from conf.schema import SweepTrainCommand
from conf.space import Choices, Dimension, Interval, override, parse_space, quoted
from data.claim import claimed
from data.storage import Prefix

SWEEP = "train -m"
OWN = ("out", "tracking.group", "tracking.tags")  # settings that each trial is given by the sweep
# Parts of the settings that decide what a validation loss is the loss of...
MEASURING = ("validation", "autoencoder", "text_encoder", "encoding", "diffusion")
# ... but for these, which only say how the denoiser is taught.
TEACHING = (
    *("weighting", "snr_gamma", "p2_gamma", "p2_k", "sigma_data", "sigmoid_bias"),
    *("timestep_draw", "logit_mean", "logit_std", "stratified"),
    *("offset_noise", "input_perturbation", "caption_dropout", "learned_variance"),
)
# What may change while a sweep goes on: where and how fast trials run, and what is kept of them.
FREE = ("out", "cluster", "checkpoint", "tracking", "micro_batch_size", "guards", "sweep")
LONGEST_TAG = 64  # of W&B


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A sweep as its command line describes it.

    Args:
        config: Of the first trial that the values listed first would make, and of the sweep.
        fixed: Overrides that every trial has.
        dimensions: What varies.
    """

    config: SweepTrainCommand
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


def read_plan(overrides: list[str]) -> SweepPlan:
    """Understand and check the overrides of `ldm train -m`.

    Raises:
        UserError: They are no sweep, or the first trial or a single value could not be trained.
    """
    fixed, swept = parse_space(overrides)
    for name in (dim.name for dim in swept if _is_own(dim.name) or dim.name in OWN):
        raise UserError(name, "is of the sweep as a whole", f"give one value: {name}=...")
    told = compose_typed(SWEEP, [*fixed, *_first(swept)])
    if told.sweep.space:
        swept += _more(told.sweep.space, {_name(text) for text in overrides})
        told = compose_typed(SWEEP, [*fixed, *_first(swept)])
    if not swept:
        remedy = "list values, as optimizer.lr=1e-4,3e-4, or choose a space, as sweep=lr_batch"
        raise UserError("-m", "has nothing to vary", remedy)
    check(told)
    _check(told, swept)
    for changed, value in _alternatives(swept):
        others = [dim for dim in swept if dim.name != changed]
        other = compose_typed(SWEEP, [*fixed, *_first(others), f"{changed}={value}"])
        if measured(other) != measured(told):
            raise UserError(
                f"{changed}={value}",
                "changes what the validation loss measures, by which trials are compared",
                "make a sweep of its own for each value",
            )
    shared = [text for text in fixed if not _is_own(_name(text)) and _name(text) not in OWN]
    return SweepPlan(told, tuple(shared), tuple(swept))


def identity(plan: SweepPlan) -> dict[str, Any]:
    """What makes a sweep the one that it is, JSON-ready: another is refused in the same folder."""
    settings = {k: v for k, v in config_dict(plan.config).items() if k not in FREE}
    space = {dim.name: _described(dim) for dim in plan.dimensions}
    sampler, seed = plan.config.sweep.sampler.value, plan.config.sweep.seed
    return {"command": "sweep", "space": space, "sampler": sampler, "seed": seed, **settings}


def is_sweep(out: Prefix) -> bool:
    """Whether a prefix holds a sweep."""
    settings = claimed(out)
    return settings is not None and settings.get("command") == "sweep"


def swept_in(out: Prefix) -> list[Dimension]:
    """What varies in the sweep at a prefix."""
    settings = claimed(out)
    assert settings is not None
    return [
        Choices(name, tuple(told)) if isinstance(told, list) else Interval(name, **told)
        for name, told in settings["space"].items()
    ]


def trial_overrides(plan: SweepPlan, values: dict[str, str], out: str, group: str) -> list[str]:
    """The overrides of `ldm train` for one trial.

    Args:
        plan: The sweep.
        values: Of what varies, as they are written on a command line.
        out: Where the trial's run goes.
        group: Name of the sweep.
    """
    own = [f"{name}={value}" for name, value in values.items()]
    tags = ",".join(quoted(text[:LONGEST_TAG]) for text in own)
    tracking = [override("tracking.group", group), f"tracking.tags=[{tags}]"]
    return [*plan.fixed, *own, override("out", out), *tracking]


def measured(config: Any) -> dict[str, Any]:
    """The settings that decide what the validation loss is the loss of."""
    found = {k: v for k, v in config_dict(config).items() if k in MEASURING}
    found["diffusion"] = {k: v for k, v in found["diffusion"].items() if k not in TEACHING}
    return found


def _check(config: SweepTrainCommand, swept: list[Dimension]) -> None:
    if config.validation.url is None:
        wrong = "is missing, and trials are compared by the loss on held-out samples"
        raise UserError("validation.url", wrong, "give validation.url=URL of a held-out dataset")
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


def _more(space: list[str], given: set[str]) -> list[Dimension]:
    """What `sweep.space` varies and the command line says nothing of."""
    fixed, swept = parse_space(space)
    for text in fixed:
        raise UserError(f"sweep.space=['{text}']", "has one value", "list several, or leave it out")
    for name in (dim.name for dim in swept if _is_own(dim.name) or dim.name in OWN):
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


def _is_own(name: str) -> bool:
    return name.partition(".")[0] == "sweep"
