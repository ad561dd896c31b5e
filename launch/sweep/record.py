"""What is kept of each trial in `trials/NNN.json`, whatever the database: the report reads it."""

import json
import shlex
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from conf.space import override
from data.storage import Prefix
from launch.sweep.objective import Objective

FOLDER = "trials"


class Outcome(Enum):
    """How a trial ended."""

    complete = "complete"
    pruned = "pruned"
    diverged = "diverged"
    refused = "refused"
    failed = "failed"


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial that has ended.

    Args:
        number: From 0; its run is the folder of that name.
        values: What was chosen for it, as written on a command line.
        overrides: All that its command was given.
        outcome: How it ended.
        loss: The last figure that it is compared by, or None.
        seconds: That its processes of the last worker took.
        failures: What its attempts ended with that went wrong, a line each.
        error: The figure's standard error, where that is known.
    """

    number: int
    values: dict[str, str]
    overrides: list[str]
    outcome: Outcome
    loss: float | None
    seconds: float
    failures: list[str]
    error: float | None = None

    @property
    def figure(self) -> str:
        """The figure in words; empty without one."""
        error = "" if self.error is None else f" ± {self.error:.4f}"
        return "" if self.loss is None else f"{self.loss:.4f}{error}"


def folder_of(number: int) -> str:
    """The name of a trial's run."""
    return f"{number:03d}"


def write_trial(out: Prefix, trial: Trial) -> None:
    """Keep what a trial came to."""
    content = json.dumps({**asdict(trial), "outcome": trial.outcome.value}, indent=1)
    out.write(f"{FOLDER}/{folder_of(trial.number)}.json", content.encode())


def read_trials(out: Prefix) -> list[Trial]:
    """All trials that have ended, by number."""
    names = [name for name in out.names(FOLDER) if name.endswith(".json")]
    return sorted((_trial(out.read(f"{FOLDER}/{name}")) for name in names), key=lambda t: t.number)


def ranked(trials: list[Trial]) -> list[Trial]:
    """The best first: complete ones by their loss, then others alike, those without one last."""

    def key(trial: Trial) -> tuple[bool, float, int]:
        loss = float("inf") if trial.loss is None else trial.loss
        return trial.outcome is not Outcome.complete, loss, trial.number

    return sorted(trials, key=key)


def best_command(objective: Objective, trial: Trial, out: str) -> str:
    """The command line of a trial, for a run of its own to copy."""
    kept = [text for text in trial.overrides if text.partition("=")[0] not in objective.own]
    return shlex.join(["ldm", objective.command, *kept, override("out", out)])


def _trial(content: bytes) -> Trial:
    told: dict[str, Any] = json.loads(content)
    return Trial(**{**told, "outcome": Outcome(told["outcome"])})
