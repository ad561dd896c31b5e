"""The settings of a sweep: which trials there are, and how they are run."""

from dataclasses import dataclass

from conf.enums import SweepPruner, SweepSampler
from conf.fields import setting


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    """Which trials a sweep makes, and how it runs them."""

    sampler: SweepSampler = setting(
        "grid: every combination of the listed values; tpe and cmaes: sweep.trials of them, each "
        "chosen by what those before it have shown (cmaes for intervals alone)",
        SweepSampler.grid,
    )
    space: list[str] = setting(
        "what is swept besides the command line, and written as there: "
        "\"['optimizer.lr=tag(log,interval(1e-5,1e-3))','batch_size=64,128']\"",
        [],
    )
    trials: int = setting(
        "with tpe and cmaes: trials in all; a later run may ask for more", 20, low=1
    )
    seed: int = setting("seed of what tpe and cmaes draw", 0, low=0, high=4294967295)
    startup_trials: int = setting(
        "first trials that tpe draws at random, and that pruning by the median waits for", 5, low=1
    )
    storage: str | None = setting(
        "database of the trials, which several workers may share, as sqlite:////shared/study.db or "
        "postgresql://HOST/NAME; null is study.db in the sweep's folder",
        None,
    )
    parallel: int = setting(
        "trials that one worker runs at the same time, each on GPUs of its own, if there are as many",
        1,
        low=1,
    )
    retries: int = setting("how often a trial that fails or is preempted goes on", 1, low=0)


@dataclass(kw_only=True, slots=True)
class SweepTrainConfig(SweepConfig):
    """The same of trainings, whose losses tell before their end what becomes of them."""

    pruner: SweepPruner = setting(
        "what ends a trial by its validation losses: none; median: worse than half of the others; "
        "halving: not among the best third at 1, 3, 9, ... measurements",
        SweepPruner.none,
    )
