"""Which of the settings that vary mattered, by PED-ANOVA, which needs no forest and no sklearn.

Source: Watanabe et al. 2023, arXiv:2304.10255, as Optuna has it.
"""

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from conf.space import Dimension, Interval
from launch.sweep.record import Outcome, Trial
from launch.sweep.samplers import distributions

BEST = 0.25  # share of the trials that count as good; there are few in all
FEWEST = 8  # complete trials, so that two are good


def importances(trials: list[Trial], swept: list[Dimension]) -> dict[str, float]:
    """How much each setting decides whether a trial is among the best quarter.

    Args:
        trials: That have ended.
        swept: What varies.

    Returns:
        Shares that add up to 1, the largest first; empty of fewer than eight complete trials.
    """
    complete = [one for one in trials if one.outcome is Outcome.complete]
    if len(complete) < FEWEST:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    space = distributions(swept)
    for one in complete:
        params = {dim.name: value_of(dim, one.values[dim.name]) for dim in swept}
        study.add_trial(create_trial(params=params, distributions=space, value=one.loss))
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=BEST))


def value_of(dim: Dimension, written: str) -> str | float | int:
    """What a value on a command line says, of an interval a number within it."""
    if not isinstance(dim, Interval):
        return written
    if dim.whole:
        return int(written)
    return min(max(float(written), dim.low), dim.high)  # it was written to six digits
