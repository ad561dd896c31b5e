"""The database of a sweep's trials: opened, and who of several workers takes which trial.

A worker holds a trial by a lock on a file, which the kernel gives up when the worker ends in
whatever way. So a trial that nobody holds and that has not ended is taken up again, and no clock
has to say that a worker is dead.
"""

import fcntl
import logging
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from conf.enums import SweepPruner
from conf.errors import RunError, UserError
from conf.secrets import without_credentials
from conf.space import Choices
from conf.sweeping import SweepTrainConfig
from data.say import say
from data.storage import Prefix
from launch.sweep.plan import SweepPlan
from launch.sweep.record import FOLDER, folder_of
from launch.sweep.samplers import build_sampler

DATABASE, NAME = "study.db", "study_name"
TURN = "turn"
# Seconds that a worker waits for another one's transaction, and for a server's first word.
WAITING = {"sqlite": {"timeout": 60}, "postgresql+psycopg:": {"connect_timeout": 10}}
REDUCTION = 3  # of successive halving: one of so many goes on


class DatabaseAway(Exception):
    """The database does not answer; what was asked can be asked again."""


@dataclass(frozen=True, slots=True)
class Held:
    """A trial that this worker has taken, and the lock that says so."""

    trial: optuna.Trial
    lock: IO[bytes]


class Table:
    """The trials of a sweep, which workers take in turns.

    A database that is away is `DatabaseAway`, and what was asked can be asked again.

    Args:
        plan: The sweep.
        out: Its prefix.
        local: The same as a folder.

    Raises:
        UserError: The database cannot be opened.
        RunError: It does not answer.
    """

    def __init__(self, plan: SweepPlan, out: Prefix, local: Path) -> None:
        self._plan, self._locks = plan, local / FOLDER
        self._away: float | None = None
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
        with self._asking(), self._turn():
            for left in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                lock = self._lock(left.number)
                if lock is None:
                    continue
                with _closed_unless_held(lock):
                    if not self._has_ended(left.number):  # since the list was made
                        return self._held(self._again(left.number), lock)
                lock.close()
            if len(self.study.get_trials(deepcopy=False)) >= self._plan.trials:
                return None
            trial = self.study.ask()
            lock = self._lock(trial.number)
            assert lock is not None, "a trial of one's own is locked by another"
            with _closed_unless_held(lock):
                return self._held(trial, lock)

    def measured(self, held: Held, values: Mapping[int, float]) -> bool:
        """Keep what a trial has measured, by the number of the measurement.

        Returns:
            Whether it does badly, and shall be ended.
        """
        with self._asking():
            told = self.study.get_trials(deepcopy=False)[held.trial.number].intermediate_values
            for step, value in values.items():
                if step not in told:
                    held.trial.report(value, step)
            return bool(values) and held.trial.should_prune()

    def note(self, held: Held, name: str, value: Any) -> None:
        """Keep something with a trial."""
        with self._asking():
            held.trial.set_user_attr(name, value)

    def tell(self, held: Held, value: float | None, state: TrialState) -> None:
        """Say what a trial came to; once is enough."""
        with self._asking():
            self.study.tell(held.trial, value, state, skip_if_finished=True)

    def open_elsewhere(self) -> int:
        """How many trials other workers have not ended, for one that has none left."""
        with self._asking():
            return len(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def silent(self) -> float:
        """Seconds since it was first asked in vain, if it has not answered since; else 0."""
        return 0.0 if self._away is None else time.monotonic() - self._away

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Within it a database that does not answer is `DatabaseAway`, and is told of once."""
        asked = time.monotonic()
        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:
            if self._away is None:
                self._away = asked
                say(f"sweep: the database does not answer ({_reason(error)}); trials go on")
            raise DatabaseAway from error
        if self._away is not None:
            say(f"sweep: the database answers again after {self.silent():.0f} s")
            self._away = None

    def _again(self, number: int) -> optuna.Trial:
        """A trial that was made before."""
        study = self._storage.get_study_id_from_name(self.study.study_name)
        place = self._storage.get_trial_id_from_study_id_trial_number(study, number)
        return optuna.Trial(self.study, place)

    def _held(self, trial: optuna.Trial, lock: IO[bytes]) -> Held:
        for dim in self._plan.dimensions:
            if isinstance(dim, Choices):
                trial.suggest_categorical(dim.name, dim.values)
            elif dim.whole:
                trial.suggest_int(dim.name, int(dim.low), int(dim.high), log=dim.log)
            else:
                trial.suggest_float(dim.name, dim.low, dim.high, log=dim.log)
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


@contextmanager
def _closed_unless_held(lock: IO[bytes]) -> Iterator[None]:
    """Within it an error gives the lock back: the trial will be asked for again."""
    try:
        yield
    except BaseException:
        lock.close()
        raise


def _reason(error: Exception) -> str:
    """What a database's client says, without what Optuna says around it."""
    return without_credentials(str(error.__cause__ or error).strip().splitlines()[0])


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
    try:
        full = _with_driver(url)
        waiting = next((told for start, told in WAITING.items() if full.startswith(start)), {})
        # No connection is kept: hours of training lie between two uses, and networks cut idle ones.
        pool = {"poolclass": NullPool, "connect_args": waiting}
        storage = RDBStorage(full, engine_kwargs=pool)
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
        if isinstance(error, OperationalError) and not url.startswith("sqlite"):  # it may be away
            where = f"sweep.storage={_shown(url)}"
            remedy = "check that it runs and that its address is right, then run again"
            raise RunError(f"{where}: does not answer ({_reason(error)}); {remedy}") from None
        wrong = f"cannot be opened ({_reason(error)})"
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
