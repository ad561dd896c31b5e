"""Real jobs of a real Slurm: ZeRO-2 on two nodes, with a real S3 server."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from data.storage import open_prefix
from tests.helpers.commands import ENVIRONMENT, LDM, Ended
from tests.helpers.latents import SMALL_UNET, adam_moments, assert_equal, write_latents
from tests.helpers.processes import log_tail
from tests.helpers.slurm import WHY_NOT, running_slurm, slurm_state
from training.engine.checkpoint import Checkpoint, checkpoint_steps, latest_checkpoint
from training.tracking.files import read_metrics

SAMPLES, BATCH = 240, 8
SETTINGS = (
    *SMALL_UNET,
    *["engine=zero2", "engine.precision=fp32", "tracking.kind=off", "checkpoint.every_samples=40"],
    *(f"batch_size={BATCH}", f"train.samples={SAMPLES}", f"tracking.log_every_samples={BATCH}"),
    *["cluster=slurm", "cluster.nodes=2", "cluster.gpus=0", "cluster.address=127.0.0.1"],
)

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

    def train(self, run: str, *more: str) -> str:
        """Submit a training; its id."""
        urls = (f"data.url={self.bucket}/latents", f"out={self.bucket}/{run}")
        ended = self.ldm("train", *SETTINGS, *urls, f"cluster.name={run}", *more)
        assert ended.code == 0, ended.output
        assert ended.output.count("\n") == 1
        return ended.output.split()[0]

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


def number(job: str) -> str:
    return job.removeprefix("slurm:")


@pytest.fixture(scope="module")
def lab(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "slurm").mkdir()
    with ExitStack() as undo:
        slurm = undo.enter_context(running_slurm(folder / "slurm"))
        write_latents(f"{s3}/latents")
        yield Lab(folder, slurm, s3)


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


def test_its_log_is_shown(lab: Lab, signalled: str) -> None:
    told = lab.ldm("logs", f"job={signalled}", "lines=1000")
    assert told.code == 0
    assert "zero2 on 2 ranks of cpu, from the start" in told.output


def test_a_job_that_is_stopped_saves_and_is_not_queued_again(lab: Lab) -> None:
    job = lab.train("stopped", "train.samples=8_000_000")
    lab.wait_for_checkpoint("stopped", job)
    assert lab.ldm("stop", f"job={job}").output == f"{job} was RUNNING\n"
    lab.wait(job, "FAILED")
    told = lab.ldm("status", f"job={job}").output
    assert "Restarts=0" in told and "ExitCode=75:0" in told


def test_a_mistake_that_only_the_job_can_find_ends_it_in_one_line(lab: Lab) -> None:
    job = lab.train("mistaken", f"data.url={lab.bucket}/nothing")
    lab.wait(job, "FAILED")
    assert "ExitCode=2:0" in lab.ldm("status", f"job={job}").output
    assert [line for line in lab.log(job).splitlines() if line.startswith("ldm: data.url=")]


def test_what_slurm_refuses_is_one_line(lab: Lab) -> None:
    urls = (f"data.url={lab.bucket}/latents", f"out={lab.bucket}/refused")
    ended = lab.ldm("train", *SETTINGS, *urls, "cluster.partition=moon")
    assert ended.code == 2
    said = "ldm: cluster=slurm: sbatch refuses: error: invalid partition specified: moon"
    assert ended.output.startswith(said)
    assert ended.output.count("\n") == 1


def test_a_job_that_is_not_there_is_one_line(lab: Lab) -> None:
    for command in ("status", "logs", "stop"):
        ended = lab.ldm(command, "job=slurm:4711")
        assert ended.code == 2
        assert ended.output.startswith("ldm: job=slurm:4711: scontrol refuses: ")
        assert ended.output.count("\n") == 1
