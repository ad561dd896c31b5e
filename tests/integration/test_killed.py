"""`ldm demo`, disturbed in every stage, ends where an undisturbed one does, bit for bit."""

import json
import os
import re
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import Ended, kill_hard, ldm, running_ldm, wait_for_end, wait_until

# What appears first in each stage, and what must not be there yet when the kill has come.
KILLS = {
    "shard": ("images/index/*.json", "images/manifest.json"),
    "autoencoder": ("autoencoder/checkpoints/*/commit.json", "autoencoder/summary.json"),
    "cache": ("latents/index/*.json", "latents/manifest.json"),
    "train": ("run/checkpoints/*/commit.json", "run/summary.json"),
}


# All runs are made in the fixture, and its time counts for the test that asks first.
pytestmark = pytest.mark.timeout(1200)


@dataclass
class Disturbed:
    """A demo that was disturbed, and what was seen of it."""

    out: Path
    unfinished: dict[str, bool] = field(default_factory=dict)
    survivors: dict[str, list[str]] = field(default_factory=dict)
    interrupted: Ended = field(default_factory=lambda: Ended(-1, ""))
    steps: list[str] = field(default_factory=list)
    saved: int = -1
    times: dict[str, dict[str, int]] = field(default_factory=dict)


def arguments(out: Path) -> tuple[str, ...]:
    return "demo", f"out={out}", "recipe=emoji_tiny"


def steps(out: Path) -> list[str]:
    return sorted(commit.parent.name for commit in out.glob("run/checkpoints/*/commit.json"))


def times(folder: Path) -> dict[str, int]:
    """When each file of a finished stage was last written."""
    return {str(f): f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """Killed in every stage, each time started again, then interrupted, then left in peace."""
    folder = tmp_path_factory.mktemp("disturbed")
    out, log = folder / "out", folder / "log"
    seen = Disturbed(out)
    for stage, (first, last) in KILLS.items():
        with running_ldm(log, *arguments(out)) as process:
            wait_until(lambda first=first: any(out.glob(first)), process, log)
            seen.survivors[stage] = kill_hard(process)
        seen.unfinished[stage] = not (out / last).exists()
    for stage in ("images", "autoencoder", "latents"):
        seen.times[stage] = times(out / stage)
    before = steps(out)[-1]
    with running_ldm(log, *arguments(out)) as process:
        wait_until(lambda: steps(out)[-1] > before, process, log)
        seen.steps.append(steps(out)[-1])
        os.killpg(process.pid, signal.SIGINT)
        seen.interrupted = wait_for_end(process, log)
    seen.steps.append(steps(out)[-1])
    seen.saved = newest(out / "run")["samples_seen"]
    ended = ldm(log, *arguments(out))
    assert ended.code == 0, ended.output
    return seen


def newest(run: Path) -> Any:
    """The commit of a run's newest checkpoint."""
    return json.loads(max(run.glob("checkpoints/*/commit.json")).read_text())


@pytest.mark.parametrize("stage", KILLS)
def test_the_kill_came_within_the_stage(disturbed: Disturbed, stage: str) -> None:
    """Or the comparisons below would say nothing of it."""
    assert disturbed.unfinished[stage]


@pytest.mark.parametrize("stage", KILLS)
def test_nothing_survives_a_kill(disturbed: Disturbed, stage: str) -> None:
    assert disturbed.survivors[stage] == []


@pytest.mark.parametrize("run", ["autoencoder", "run"])
def test_final_weights_and_state_are_those_of_the_undisturbed_demo(
    disturbed: Disturbed, demo: Path, run: str
) -> None:
    got, wanted = newest(disturbed.out / run), newest(demo / run)
    assert got.pop("tracker") != wanted.pop("tracker")  # a record of its own, of an equal state,
    assert got.pop("sha256") != wanted.pop("sha256")  # and so another seal
    assert got == wanted


@pytest.mark.parametrize("dataset", ["images", "held_out", "latents"])
def test_datasets_are_those_of_the_undisturbed_demo(
    disturbed: Disturbed, demo: Path, dataset: str
) -> None:
    got, wanted = (
        json.loads((out / dataset / "manifest.json").read_text()) for out in (disturbed.out, demo)
    )
    assert got["fingerprint"] == wanted["fingerprint"]
    for shard in wanted["shards"]:
        name = f"{dataset}/shards/{shard['name']}.tar"
        assert (disturbed.out / name).read_bytes() == (demo / name).read_bytes()


def test_samples_and_evaluation_are_those_of_the_undisturbed_demo(
    disturbed: Disturbed, demo: Path
) -> None:
    for name in ("samples/demo/grid.png", "evaluation/evaluation.json"):
        assert (disturbed.out / "run" / name).read_bytes() == (demo / "run" / name).read_bytes()


@pytest.mark.parametrize("run", ["autoencoder", "run"])
def test_metrics_are_those_of_the_undisturbed_demo_with_no_line_twice(
    disturbed: Disturbed, demo: Path, run: str
) -> None:
    def lines(out: Path) -> list[tuple[float, ...]]:
        read = map(json.loads, (out / run / "metrics.jsonl").read_text().splitlines())
        return [(line["samples_seen"], line["loss"], line["lr"]) for line in read]

    assert lines(disturbed.out) == lines(demo)


def test_ctrl_c_saves_where_it_is_and_says_so_by_its_exit_code(disturbed: Disturbed) -> None:
    """Where it is may be where the periodic checkpoint was: the next step need not have begun."""
    periodic, last = disturbed.steps
    assert disturbed.interrupted.code in (75, 130)
    assert last >= periodic
    stopped = re.search(r"stopped after ([\d,]+) samples", disturbed.interrupted.output)
    assert stopped and int(stopped[1].replace(",", "")) == disturbed.saved


def test_finished_stages_are_not_done_again(disturbed: Disturbed) -> None:
    for stage, then in disturbed.times.items():
        assert times(disturbed.out / stage) == then


def test_nothing_partial_is_left(disturbed: Disturbed) -> None:
    hidden = [f for f in disturbed.out.rglob(".*") if "wandb" not in f.parts]
    # A process killed within a write leaves its own hidden file, which nothing ever reads.
    assert [f for f in hidden if f.suffix != ".partial"] == []
