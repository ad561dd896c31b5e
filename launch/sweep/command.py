"""`ldm train -m` and `ldm evaluate -m`: the worker that takes trials, runs each as a command of its
own, and keeps the results.
"""

import contextlib
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from conf.compose import compose_config
from conf.errors import Preempted, RunError, UserError
from data.claim import claim
from data.say import say
from data.storage import Prefix, open_prefix
from launch.sweep.attempt import Attempt, failure_line, outcome_of, threads_of
from launch.sweep.gpus import gpus_of_place, visible_gpus
from launch.sweep.objective import EVALUATING, TRAINING, Measured, Objective
from launch.sweep.plan import SweepPlan, identity, read_plan, trial_overrides
from launch.sweep.record import (
    FOLDER,
    Outcome,
    Trial,
    best_command,
    folder_of,
    ranked,
    read_trials,
    write_trial,
)
from launch.sweep.study import DatabaseAway, Held, Table
from training.stop import stop_flag

POLL_SECONDS = 0.1
PAUSE_SECONDS = 1.0  # between two looks at a database that does not answer
SECONDS_WITHOUT_DATABASE = 600.0  # after which trials save and end
FAILURES = "failures"
# A diverged trial is a bad one, and Optuna learns from pruned ones, not from failed ones.
STATES = {
    Outcome.complete: TrialState.COMPLETE,
    Outcome.pruned: TrialState.PRUNED,
    Outcome.diverged: TrialState.PRUNED,
    Outcome.refused: TrialState.FAIL,
    Outcome.failed: TrialState.FAIL,
}


def sweep_trainings(overrides: list[str]) -> None:
    """`ldm train -m`, whose overrides are given without the flag."""
    sweep(overrides, TRAINING)


def sweep_evaluations(overrides: list[str]) -> None:
    """`ldm evaluate -m`, whose overrides are given without the flag."""
    sweep(overrides, EVALUATING)


def sweep(overrides: list[str], objective: Objective) -> None:
    """Make all trials of a sweep that nobody else makes or has made.

    Args:
        overrides: Of the sweep's command, without the flag.
        objective: What its trials run, and what they are compared by.

    Raises:
        UserError: They are no sweep, or its folder or database cannot be used.
        RunError: No trial could be completed.
        Preempted: Told to stop; trials have saved.
    """
    plan = read_plan(overrides, objective)
    out = open_prefix(plan.config.out, "out")
    if out.local is None:
        wrong = "is on no disk, where workers could agree who takes which trial"
        raise UserError(f"out={out.url}", wrong, "give a folder, which may be a shared one")
    claim(out, identity(plan))
    worker = Worker(plan, out, out.local)
    say(f"sweep: {plan.trials} trials of {', '.join(dim.name for dim in plan.dimensions)}")
    with contextlib.closing(worker.table):
        worker.run()
        elsewhere = 0
        with contextlib.suppress(DatabaseAway):  # it is only told
            elsewhere = worker.table.open_elsewhere()
        _summarise(out, objective, elsewhere)


@dataclass(slots=True)
class Running:
    """A trial that this worker runs at one of its places, and its process."""

    held: Held
    place: int
    values: dict[str, str]
    overrides: list[str]
    attempt: Attempt
    failures: list[str]
    before: float = 0.0  # seconds of earlier attempts of this worker
    read: int = 0  # when the file was written that was read last, in ns
    figures: dict[int, Measured] = field(default_factory=dict)  # by measurement, in order
    pruned: bool = False

    @property
    def number(self) -> int:
        """Of the trial."""
        return self.held.trial.number


class Worker:
    """Runs trials, `sweep.parallel` at a time, until none is left.

    Args:
        plan: The sweep.
        out: Its prefix.
        local: The same as a folder.
    """

    def __init__(self, plan: SweepPlan, out: Prefix, local: Path) -> None:
        self.plan, self.out, self.local = plan, out, local
        self.objective = plan.objective
        self.table = Table(plan, out, local)
        self.running: dict[int, Running] = {}
        self.threads = threads_of(plan.config)
        parallel, ranks = plan.config.sweep.parallel, plan.config.cluster.processes
        self.gpus = visible_gpus() if parallel > 1 else []  # one alone may have them all
        if 0 < len(self.gpus) < parallel * ranks:
            say(f"sweep: {parallel} trials of {ranks} ranks share {len(self.gpus)} GPUs")

    def run(self) -> None:
        """Take and run trials.

        Raises:
            Preempted: Told to stop, and trials were running or left.
            RunError: The database was waited for in vain.
        """
        with stop_flag(lambda: None) as stop:
            ending = False
            while True:
                # For good: trials that were told to stop are not called back.
                ending = ending or stop.requested
                ending = ending or self.table.silent() > SECONDS_WITHOUT_DATABASE
                if not ending:
                    with contextlib.suppress(DatabaseAway):
                        self._fill()
                if not self.running and (ending or not self.table.silent()):
                    break
                for one in list(self.running.values()):
                    if ending:
                        one.attempt.end()
                    with contextlib.suppress(DatabaseAway):
                        self._look(one, ending)
                time.sleep(PAUSE_SECONDS if self.table.silent() else POLL_SECONDS)
            if stop.requested:
                raise Preempted("sweep stopped, trials saved; the same command goes on from there")
            if ending:
                raise RunError(
                    f"{self.out.url}: waited {self.table.silent():.0f} s for the sweep's database, "
                    "trials saved; the same command goes on from there"
                )

    def _fill(self) -> None:
        while len(self.running) < self.plan.config.sweep.parallel:
            held = self.table.take()
            if held is None:
                return
            self._start(held)

    def _start(self, held: Held) -> None:
        number, values = held.trial.number, _written(held.trial.params)
        folder = str(self.local / folder_of(number))
        name = self.local.resolve().name
        overrides = trial_overrides(self.plan, values, folder, name)
        taken = {one.place for one in self.running.values()}
        place = next(i for i in range(self.plan.config.sweep.parallel) if i not in taken)
        attempt = self._attempt(number, place, overrides)
        failures = list(held.trial.user_attrs.get(FAILURES, []))
        self.running[number] = Running(held, place, values, overrides, attempt, failures)
        say(f"trial {folder_of(number)}: {_shown(values)}")

    def _attempt(self, number: int, place: int, overrides: list[str]) -> Attempt:
        gpus, ranks = None, self.plan.config.cluster.processes
        if self.gpus:
            gpus = gpus_of_place(self.gpus, place, ranks)
        arguments = [self.objective.command, *overrides]
        return Attempt(arguments, self._log(number), self.threads, gpus)

    def _look(self, one: Running, stopping: bool) -> None:
        """Take in what a trial has measured, end it if it does badly, and see whether it ended."""
        code = one.attempt.poll()  # before its metrics: what a dead process has written is all
        # Whoever takes it up again tells of its end.
        if stopping and code is not None and (code != 0 or self.table.silent()):
            self._let_go(one)
            return
        not_finite = self._measure(one)
        if code is None:
            if not_finite:
                one.attempt.end()
            return
        failed = failure_line(code, self._log(one.number)) if code and not one.pruned else None
        retries = self.plan.config.sweep.retries
        refused = code == UserError.exit_code and not self._can_be_composed(one)
        may_retry = len(one.failures) < retries
        outcome = outcome_of(code, one.pruned, not_finite, refused, may_retry)
        failures = [*one.failures, *([failed] if failed else [])]
        if failed:
            self.table.note(one.held, FAILURES, failures)
        if outcome is None:
            say(f"trial {folder_of(one.number)}: {failed}; it goes on")
            one.failures = failures
            one.before += one.attempt.seconds()
            one.attempt = self._attempt(one.number, one.place, one.overrides)
            return
        self._tell(one, outcome, failures)

    def _measure(self, one: Running) -> bool:
        """Take in what a trial has measured, if it has written since, and end it if it does badly.

        Returns:
            Whether a figure was not finite.
        """
        file = self.local / folder_of(one.number) / self.objective.file
        written = file.stat().st_mtime_ns if file.exists() else 0
        if written != one.read:
            self._report(one)
            one.read = written
        return not all(math.isfinite(figure.value) for figure in one.figures.values())

    def _report(self, one: Running) -> None:
        """Tell the study of new figures, by their number so that batch sizes do not matter."""
        every = self.objective.every(self.plan.config)
        figures = self.objective.read(self._run(one))
        one.figures = {-(-figure.seen // every): figure for figure in figures}
        values = {step: told.value for step, told in one.figures.items()}
        values = {step: value for step, value in values.items() if math.isfinite(value)}
        if self.table.measured(one.held, values) and not one.pruned:
            one.pruned = True
            one.attempt.end()

    def _tell(self, one: Running, outcome: Outcome, failures: list[str]) -> None:
        last = next(reversed(one.figures.values()), None)
        last = last if last is not None and math.isfinite(last.value) else None
        if outcome is Outcome.complete and last is None:
            failures = [*failures, f"it measured no {self.objective.name}"]
            outcome = Outcome.failed
        loss, error = (None, None) if last is None else (last.value, last.error)
        value = loss if outcome is Outcome.complete else None
        seconds = one.before + one.attempt.seconds()
        told = Trial(one.number, one.values, one.overrides, outcome, loss, seconds, failures, error)
        write_trial(self.out, told)  # first: who takes up a sweep finds it or makes it again
        self.table.tell(one.held, value, STATES[outcome])
        shown = "" if loss is None else f", {self.objective.name} {told.figure}"
        why = f" ({failures[-1]})" if failures and outcome is not Outcome.complete else ""
        say(f"trial {folder_of(one.number)}: {outcome.value}{shown} in {seconds:,.0f} s{why}")
        self._let_go(one)

    def _let_go(self, one: Running) -> None:
        del self.running[one.number]
        one.held.lock.close()

    def _can_be_composed(self, one: Running) -> bool:
        """Whether its settings go together; else what it was refused for may pass by itself."""
        try:
            compose_config(self.objective.command, one.overrides)
        except UserError:
            return False
        return True

    def _run(self, one: Running) -> Prefix:
        return self.out / folder_of(one.number)

    def _log(self, number: int) -> Path:
        return self.local / FOLDER / f"{folder_of(number)}.log"


def _written(params: dict[str, Any]) -> dict[str, str]:
    """Values as they are written on a command line: numbers to six digits."""
    return {
        name: f"{value:.6g}" if isinstance(value, float) else str(value)
        for name, value in params.items()
    }


def _shown(values: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _summarise(out: Prefix, objective: Objective, elsewhere: int) -> None:
    trials = read_trials(out)
    counts = Counter(trial.outcome.value for trial in trials)
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    others = f"; {elsewhere} still with other workers" if elsewhere else ""
    say(f"sweep: {told or 'none ended'}{others}; logs: {out.url}/{FOLDER}")
    best = ranked(trials)[0] if trials else None
    if best is not None and best.outcome is Outcome.complete:
        shown = f"{objective.name} {best.figure}, {_shown(best.values)}"
        say(f"best: trial {folder_of(best.number)}, {shown}")
        say(best_command(objective, best, f"{out.url}/best"))
    elif not elsewhere:
        failures = [line for trial in trials for line in trial.failures[-1:]]
        why = f" (the last: {failures[-1]})" if failures else ""
        raise RunError(f"{out.url}: no trial was completed{why}; look at {out.url}/{FOLDER}/*.log")
