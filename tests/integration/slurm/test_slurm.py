"""Real jobs of a real Slurm: ZeRO-2 on two nodes, with a real S3 server."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from conf.clusters import SlurmCluster
from data.storage import open_prefix
from launch.jobs.slurm import slurm_script
from launch.sweep.record import Outcome, read_trials
from tests.helpers.commands import ENVIRONMENT, LDM, Ended
from tests.helpers.latents import SMALL_UNET, adam_moments, assert_equal, write_latents
from tests.helpers.processes import log_tail
from tests.helpers.slurm import HOLD, WHY_NOT, running_slurm, slurm_state
from training.engine.checkpoint import Checkpoint, checkpoint_steps, latest_checkpoint
from training.tracking.code import code_state
from training.tracking.files import read_metrics

SAMPLES, BATCH = 240, 8
SETTINGS = (
    *SMALL_UNET,
    *["engine=zero2", "engine.precision=fp32", "tracking.kind=off", "checkpoint.every_samples=40"],
    *(f"batch_size={BATCH}", f"train.samples={SAMPLES}", f"tracking.log_every_samples={BATCH}"),
    *["cluster=slurm", "cluster.nodes=2", "cluster.gpus=0", "cluster.address=127.0.0.1"],
)

EVERY = 80
SWEEP_SETTINGS = (
    *[*SMALL_UNET, "unet.dropout=0", "engine.precision=fp32", "tracking.kind=off"],
    *["train.ema_half_life=20", "optimizer.warmup_samples=1", "guards.dry_batch=false"],
    *["batch_size=8", "validation.samples=8"],
    *[f"validation.every_samples={EVERY}", f"checkpoint.every_samples={EVERY}"],
)

WORKER = """\
#!/bin/bash
trap 'touch "$SLURM_ARRAY_TASK_ID is told.told"; exit 75' USR1
touch "$SLURM_ARRAY_TASK_ID begins.told"
echo begins
while :; do sleep 0.1; done
"""

pytestmark = [
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.timeout(300),  # all runs are made in the fixture
]


@dataclass
class Lab:
    """A Slurm, a bucket, and what became of the jobs there."""

    folder: Path
    slurm: dict[str, str]
    bucket: str

    def ldm(self, *arguments: str) -> Ended:
        """`ldm`, as a user of this Slurm starts it, in a folder of its own."""
        environment = {**os.environ, **ENVIRONMENT, **self.slurm, "PYTHONPATH": str(Path.cwd())}
        told = {"capture_output": True, "text": True, "timeout": 60, "check": False}
        done = subprocess.run([*LDM, *arguments], cwd=self.folder, env=environment, **told)
        return Ended(done.returncode, done.stdout + done.stderr)

    def command(self, *words: str, folder: Path | None = None, given: str = "") -> str:
        """What one of Slurm's own programs prints."""
        environment = {**os.environ, **self.slurm}
        told = {"capture_output": True, "text": True, "check": True, "input": given}
        return subprocess.run(words, cwd=folder or self.folder, env=environment, **told).stdout

    def train(self, run: str, *more: str) -> str:
        """Submit a training; its id."""
        urls = (f"data.url={self.bucket}/latents", f"out={self.bucket}/{run}")
        return self.submit("train", *SETTINGS, *urls, *more)

    def submit(self, *arguments: str) -> str:
        """Submit any command; its id."""
        ended = self.ldm(*arguments)
        assert ended.code == 0, ended.output
        assert ended.output.count("\n") == 1
        return ended.output.split()[0]

    def states(self, job: str) -> list[str]:
        """Of the jobs of an array, in order; those that wait may be told as one."""
        lines = self.ldm("status", f"job={job}").output.splitlines()
        told = [dict(pair.split("=", 1) for pair in line.split()) for line in lines]
        return [one["JobState"] for one in sorted(told, key=lambda one: one["ArrayTaskId"])]

    def wait(self, job: str, *states: str) -> None:
        """Until a job is in one of these states."""
        limit = time.monotonic() + 120
        while (state := slurm_state(number(job), self.slurm)) not in states:
            assert state in ("PENDING", "RUNNING", "COMPLETING"), f"{state}\n{self.log(job)}"
            assert time.monotonic() < limit, f"{state}\n{self.log(job)}"
            time.sleep(0.1)

    def wait_for_checkpoint(self, run: str, job: str) -> int:
        """Until a run has saved; the updates that it had made."""
        limit, place = time.monotonic() + 120, open_prefix(f"{self.bucket}/{run}", "out")
        while not (steps := checkpoint_steps(place)):
            assert time.monotonic() < limit, self.log(job)
            time.sleep(0.05)
        return int(steps[-1])

    def log(self, job: str) -> str:
        (file,) = self.folder.glob(f"logs/*-{number(job)}.log")
        return log_tail(file, 100)


@dataclass
class Workers:
    """The two jobs of an array that train nothing, but tell what they are told.

    Args:
        lab: Where they run.
        folder: They leave a file there for each.
        job: The array.
    """

    lab: Lab
    folder: Path
    job: str

    @property
    def numbers(self) -> tuple[str, str]:
        """Of both, as Slurm takes them."""
        return f"{number(self.job)}_0", f"{number(self.job)}_1"

    def told(self) -> set[str]:
        """What they began and were told."""
        return {file.stem for file in self.folder.glob("*.told")}

    def wait_for(self, *states: str) -> None:
        """Until both are in these states, the first worker's first."""
        limit = time.monotonic() + 120
        while (found := self.lab.states(self.job)) != [*states]:
            assert time.monotonic() < limit, found
            time.sleep(0.1)

    @contextmanager
    def cleaning_up(self) -> Iterator[None]:
        """Jobs that end stay in COMPLETING."""
        hold = self.lab.folder / "slurm" / HOLD
        hold.touch()
        try:
            yield
        finally:
            hold.unlink()


def number(job: str) -> str:
    return job.removeprefix("slurm:")


@pytest.fixture(scope="module")
def lab(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "slurm").mkdir()
    with ExitStack() as undo:
        slurm = undo.enter_context(running_slurm(folder / "slurm"))
        write_latents(f"{s3}/latents")
        write_latents(f"{s3}/held_out", (16,), seed=1)
        yield Lab(folder, slurm, s3)


@pytest.fixture
def workers(lab: Lab) -> Iterator[Workers]:
    """Both run, by a script of ours that starts another program, from a folder of an odd name."""
    folder = lab.folder / "my runs"
    (folder / "logs").mkdir(parents=True)
    program = folder / "program"
    program.write_text(WORKER)
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(program))
        cluster = SlurmCluster(gpus=0, workers=2, time="1-00:00:00")
        script = slurm_script("array", [], "", cluster)
    told = lab.command("sbatch", "--parsable", folder=folder, given=script)
    workers = Workers(lab, folder, f"slurm:{told.strip()}")
    limit = time.monotonic() + 60
    while workers.told() != {"0 begins", "1 begins"}:
        assert time.monotonic() < limit, lab.states(workers.job)
        time.sleep(0.1)
    yield workers
    lab.command("scancel", number(workers.job))  # whatever became of the test: others need room


@pytest.fixture(scope="module")
def signalled(lab: Lab) -> str:
    """A run in peace, and one that was told to stop half-way, as before its time limit."""
    peaceful = lab.train("peaceful")
    lab.wait(peaceful, "COMPLETED")
    job = lab.train("signalled")
    lab.wait_for_checkpoint("signalled", job)
    tell = ["scancel", "--batch", "--signal=USR1", number(job)]
    subprocess.run(tell, env={**os.environ, **lab.slurm}, check=True)
    lab.wait(job, "COMPLETED")
    return job


def final(lab: Lab, run: str) -> Checkpoint:
    checkpoint = latest_checkpoint(open_prefix(f"{lab.bucket}/{run}", "out"))
    assert checkpoint is not None
    return checkpoint


def test_a_job_that_is_signalled_saves_and_is_queued_again(lab: Lab, signalled: str) -> None:
    told = lab.ldm("status", f"job={signalled}")
    assert told.code == 0
    assert "JobState=COMPLETED" in told.output and "Restarts=1" in told.output
    log = lab.log(signalled)
    assert "checkpoint saved; the same command goes on from there" in log
    assert "Traceback" not in log


def test_it_ends_as_one_in_peace_bit_for_bit(lab: Lab, signalled: str) -> None:
    got, wanted = final(lab, "signalled"), final(lab, "peaceful")
    assert got.progress == wanted.progress
    assert_equal(got.weights(), wanted.weights())
    assert_equal(got.averages(), wanted.averages())
    assert_equal(adam_moments(got), adam_moments(wanted))


def test_no_sample_is_lost_or_seen_twice(lab: Lab, signalled: str) -> None:
    runs = ("peaceful", "signalled")
    lines = [read_metrics(open_prefix(f"{lab.bucket}/{run}", "out")) for run in runs]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    assert [line["samples_seen"] for line in lines[1]] == list(range(BATCH, SAMPLES + 1, BATCH))


def test_the_code_that_ran_is_kept_with_the_run(lab: Lab, signalled: str) -> None:
    starts = json.loads(open_prefix(f"{lab.bucket}/signalled", "out").read("lineage.json"))
    here = code_state()
    wanted = {"revision": here.revision, "dirty": here.dirty, "files": here.files}
    assert [start["code"] for start in starts] == [wanted] * 2


def test_a_command_that_is_submitted_again_waits_for_the_first_and_changes_nothing(
    lab: Lab, signalled: str
) -> None:
    """Another one, for the same place, is a mistake that only the job can find. It ends that."""
    place = open_prefix(f"{lab.bucket}/peaceful", "out")
    kept = {name: place.read(name) for name in ("settings.json", "latest", "metrics.jsonl")}
    alone = ("cluster.nodes=1", "engine=single")
    again = lab.train("peaceful", *alone)
    other = lab.train("peaceful", *alone, "optimizer.lr=0.5", "cluster.name=other")
    third = lab.train("peaceful", *alone, "train.samples=8_000")
    assert "JobState=PENDING Reason=Dependency" in lab.ldm("status", f"job={third}").output
    assert lab.ldm("stop", f"job={third}").output == f"{third} was PENDING\n"
    lab.wait(again, "COMPLETED")
    lab.wait(other, "FAILED")
    assert f"is finished ({SAMPLES} samples), nothing to do" in lab.log(again)
    (said,) = (line for line in lab.log(other).splitlines() if line.startswith("ldm: "))
    assert "optimizer.lr" in said
    assert "ExitCode=2:0" in lab.ldm("status", f"job={other}").output
    assert {name: place.read(name) for name in kept} == kept


def test_its_log_is_shown(lab: Lab, signalled: str) -> None:
    told = lab.ldm("logs", f"job={signalled}", "lines=1000")
    assert told.code == 0
    assert "zero2 on 2 ranks of cpu, from the start" in told.output


def test_a_job_that_is_stopped_saves_and_goes_on_only_when_it_is_submitted_again(lab: Lab) -> None:
    alone = ("cluster.nodes=1", "engine=single", "train.samples=8_000_000")
    job = lab.train("stopped", *alone)
    lab.wait_for_checkpoint("stopped", job)
    assert lab.ldm("stop", f"job={job}").output == f"{job} was RUNNING\n"
    lab.wait(job, "FAILED")
    told = lab.ldm("status", f"job={job}").output
    assert "Restarts=0" in told and "ExitCode=75:0" in told
    seen = final(lab, "stopped").progress.samples_seen
    again = lab.train("stopped", *alone)
    limit = time.monotonic() + 120
    while "M parameters, " not in (said := lab.ldm("logs", f"job={again}").output):
        assert time.monotonic() < limit, said
        time.sleep(0.2)
    assert f"single on 1 ranks of cpu, from {seen:,} samples; " in said
    lab.ldm("stop", f"job={again}")
    lab.wait(again, "FAILED")
    assert final(lab, "stopped").progress.samples_seen >= seen


def sweep_command(lab: Lab, out: Path, *more: str) -> list[str]:
    """A sweep whose workers are jobs of an array."""
    urls = (f"data.url={lab.bucket}/latents", f"validation.url={lab.bucket}/held_out")
    slurm = ("cluster=slurm", "cluster.gpus=0")
    return ["train", "-m", *SWEEP_SETTINGS, *urls, f"out={out}", *slurm, *more]


def test_a_sweep_is_an_array_and_what_a_cancelled_worker_held_is_tried_again(lab: Lab) -> None:
    """Of three workers two find a machine; the third takes the place of the one that is killed."""
    out = lab.folder / "sweep"
    vary = ("optimizer.lr=1e-3,1e-9", "diffusion.weighting=uniform,min_snr", "train.samples=160")
    job = lab.submit(*sweep_command(lab, out, *vary, "cluster.workers=3"))

    def starts() -> list[int]:
        logs = sorted(out.glob("trials/*.log"))
        return [log.read_text().count("M parameters, ") for log in logs]

    def held() -> int | None:
        """The trial that the second worker trains."""
        for log in lab.folder.glob(f"logs/*-{number(job)}_1.log"):
            for trial in re.findall(r"^trial (\d+): ", log.read_text(), re.MULTILINE)[:1]:
                return int(trial) if starts()[int(trial)] else None
        return None

    limit = time.monotonic() + 120
    while (lost := held()) is None:
        assert time.monotonic() < limit, lab.ldm("logs", f"job={job}").output
        time.sleep(0.05)
    kill = ["scancel", f"{number(job)}_1"]
    subprocess.run(kill, env={**os.environ, **lab.slurm}, check=True)
    limit = time.monotonic() + 120
    while lab.states(job) != ["COMPLETED", "CANCELLED", "COMPLETED"]:
        assert time.monotonic() < limit, lab.ldm("logs", f"job={job}").output
    trials = read_trials(open_prefix(str(out), "out"))
    assert [(one.number, one.outcome) for one in trials] == [
        (n, Outcome.complete) for n in range(4)
    ]
    assert starts() == [2 if n == lost else 1 for n in range(4)]
    told = lab.ldm("logs", f"job={job}").output
    assert [told.count(f"_{task}.log:\n") for task in range(3)] == [1, 1, 1]
    assert "sweep: 4 complete" in told


def test_an_array_that_is_stopped_saves_what_runs_and_never_begins_the_rest(lab: Lab) -> None:
    out = lab.folder / "stopped_sweep"
    vary = ("optimizer.lr=1e-3,1e-4,1e-9", "train.samples=8_000_000")
    job = lab.submit(*sweep_command(lab, out, *vary, "cluster.workers=3"))
    limit = time.monotonic() + 120
    while len(list(out.glob("00?/checkpoints/*/commit.json"))) < 2:
        assert time.monotonic() < limit, lab.ldm("logs", f"job={job}").output
        time.sleep(0.05)
    assert lab.ldm("stop", f"job={job}").output == f"{job} was PENDING, RUNNING\n"
    limit = time.monotonic() + 120
    while sorted(states := lab.states(job)) != ["CANCELLED", "FAILED", "FAILED"]:
        assert "PENDING" not in states and "COMPLETED" not in states, states
        assert time.monotonic() < limit, lab.ldm("logs", f"job={job}").output
    for log in out.glob("trials/*.log"):
        assert "checkpoint saved; the same command goes on from there" in log.read_text()


def test_slurm_tells_one_worker_of_an_array_before_its_limit_and_the_others_go_on(
    lab: Lab, workers: Workers
) -> None:
    """The last one to start: the number of its job is the array's own."""
    job, (first, last) = workers.job, workers.numbers
    log = lab.ldm("logs", f"job={job}").output
    assert log.count("my runs/logs/array-") == 2 and log.count("\nbegins\n") == 2
    shown = lab.command("scontrol", "show", "job", last)
    assert f"JobId={number(job)} " in shown and "TimeLimit=1-00:00:00 " in shown
    # Slurm looks each half minute whether less than that and `stop_seconds` is left.
    lab.command("scontrol", "update", f"JobId={last}", "TimeLimit=5")
    with workers.cleaning_up():
        workers.wait_for("RUNNING", "COMPLETING")
        assert workers.told() == {"0 begins", "1 begins", "1 is told"}
        assert "Requeue=1 Restarts=0 " in lab.command("scontrol", "show", "job", first)
        # It would begin again, and the other one be queued again.
        assert lab.ldm("stop", f"job={job}").output in (
            f"{job} was COMPLETING, RUNNING\n",
            f"{job} was RUNNING, COMPLETING\n",
        )
    workers.wait_for("FAILED", "CANCELLED")
    assert workers.told() == {"0 begins", "1 begins", "0 is told", "1 is told"}


def test_what_slurm_refuses_is_one_line(lab: Lab) -> None:
    urls = (f"data.url={lab.bucket}/latents", f"out={lab.bucket}/refused")
    ended = lab.ldm("train", *SETTINGS, *urls, "cluster.partition=moon")
    assert ended.code == 2
    said = "ldm: cluster=slurm: sbatch refuses: error: invalid partition specified: moon"
    assert ended.output.startswith(said)
    assert ended.output.count("\n") == 1


def test_a_job_that_is_not_there_is_one_line(lab: Lab) -> None:
    for command in ("status", "logs", "stop"):
        ended = lab.ldm(command, "job=slurm:99999")
        assert ended.code == 2
        assert ended.output.startswith("ldm: job=slurm:99999: scontrol refuses: ")
        assert ended.output.count("\n") == 1
