"""The database of a sweep's trials: opened, and who of several workers takes which trial.

A worker holds a trial by a lock on a file, which the kernel gives up when the worker ends in
whatever way. So a trial that nobody holds and that has not ended is taken up again, and no clock
has to say that a worker is dead.
"""

import fcntl
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import optuna
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from conf.enums import SweepPruner
from conf.errors import UserError
from conf.secrets import without_credentials
from conf.sweeping import SweepTrainConfig
from data.storage import Prefix
from launch.sweep.plan import SweepPlan
from launch.sweep.record import FOLDER, folder_of
from launch.sweep.samplers import build_sampler, distributions

DATABASE, NAME = "study.db", "study_name"
TURN = "turn"
SECONDS_FOR_DATABASE = 60  # that a worker waits for another one's transaction in SQLite
REDUCTION = 3  # of successive halving: one of so many goes on


@dataclass(frozen=True, slots=True)
class Held:
    """A trial that this worker has taken, and the lock that says so."""

    trial: optuna.Trial
    lock: IO[bytes]


class Table:
    """The trials of a sweep, which workers take in turns.

    Args:
        plan: The sweep.
        out: Its prefix.
        local: The same as a folder.

    Raises:
        UserError: The database cannot be opened.
    """

    def __init__(self, plan: SweepPlan, out: Prefix, local: Path) -> None:
        self._plan, self._locks = plan, local / FOLDER
        self._locks.mkdir(exist_ok=True)
        with self._turn():
            self._storage, self.study = _open_study(plan, out, local)

    def close(self) -> None:
        """Leave the database; the table can do nothing afterwards."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def take(self) -> Held | None:
        """A trial that nobody works on, this worker neither: one that was left, or a new one.

        Returns:
            It, or None if there is none left.
        """
        with self._turn():
            for left in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                lock = self._lock(left.number)
                if lock is None:
                    continue
                if not self._has_ended(left.number):  # since the list was made
                    return self._held(optuna.Trial(self.study, left._trial_id), lock)
                lock.close()
            if len(self.study.get_trials(deepcopy=False)) >= self._plan.trials:
                return None
            trial = self.study.ask()
            lock = self._lock(trial.number)
            assert lock is not None, "a trial of one's own is locked by another"
            return self._held(trial, lock)

    def open_elsewhere(self) -> int:
        """How many trials other workers have not ended, for one that has none left."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def _held(self, trial: optuna.Trial, lock: IO[bytes]) -> Held:
        for name, distribution in distributions(self._plan.dimensions).items():
            trial._suggest(name, distribution)
        return Held(trial, lock)

    def _has_ended(self, number: int) -> bool:
        trials = self.study.get_trials(deepcopy=False)
        return any(one.number == number and one.state.is_finished() for one in trials)

    def _lock(self, number: int) -> IO[bytes] | None:
        """The lock of a trial, or None if another has it."""
        file = (self._locks / f"{folder_of(number)}.lock").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with (self._locks / f"{TURN}.lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def build_pruner(plan: SweepPlan) -> BasePruner:
    """What says which trial to end, by measurements counted from 1."""
    told = plan.config.sweep
    if not isinstance(told, SweepTrainConfig):  # whose trials measure once
        return NopPruner()
    match told.pruner:
        case SweepPruner.none:
            return NopPruner()
        case SweepPruner.median:
            return MedianPruner(n_startup_trials=told.startup_trials)
        case SweepPruner.halving:
            return SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)


def _open_study(plan: SweepPlan, out: Prefix, local: Path) -> tuple[RDBStorage, optuna.Study]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    told = plan.config.sweep.storage
    url = told or f"sqlite:///{local.resolve() / DATABASE}"
    waiting = {"timeout": SECONDS_FOR_DATABASE} if url.startswith("sqlite") else {}
    try:
        # No connection is kept: hours of training lie between two uses, and networks cut idle ones.
        pool = {"poolclass": NullPool, "connect_args": waiting}
        storage = RDBStorage(_with_driver(url), engine_kwargs=pool)
        return storage, optuna.create_study(
            storage=storage,
            sampler=build_sampler(plan),
            pruner=build_pruner(plan),
            study_name=_name(out),
            load_if_exists=True,
        )
    except ImportError:
        remedy = "for postgresql:// run pip install 'latent-foundry[postgres]'"
        wrong = "needs a driver that is not installed"
        raise UserError(f"sweep.storage={_shown(url)}", wrong, remedy) from None
    except (SQLAlchemyError, StorageInternalError, ValueError) as error:
        wrong = f"cannot be opened ({str(error).strip().splitlines()[0]})"
        remedy = "give sqlite:////FOLDER/study.db, or the URL of a database that is there"
        raise UserError(f"sweep.storage={_shown(url)}", wrong, remedy) from None


def _with_driver(url: str) -> str:
    """A database's URL; of PostgreSQL with the driver that our extra installs, if it names none."""
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed.render_as_string(hide_password=False)


def _name(out: Prefix) -> str:
    """The study's name: by chance, for a database may hold others, and kept with the sweep."""
    with suppress(FileExistsError):
        out.create(
            NAME, f"{out.url.rstrip('/').rsplit('/', 1)[-1]}-{secrets.token_hex(6)}".encode()
        )
    return out.read(NAME).decode()


def _shown(url: str) -> str:
    """A database's URL without its password."""
    try:
        return without_credentials(make_url(url).render_as_string(hide_password=True))
    except SQLAlchemyError:
        return "..."
