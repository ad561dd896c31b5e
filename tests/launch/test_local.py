"""How ranks are started, and what a job of several says when it ends."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from conf.clusters import SlurmCluster
from conf.errors import Preempted, RunError
from data.last_words import RankError
from launch import local
from launch.jobs.node import Node
from launch.local import LDM, causes, run_ranks
from tests.helpers.datasets import tiny_images
from tests.helpers.processes import free_ports

START = """
import os
from conf.clusters import LocalCluster
from launch.local import run_ranks
assert run_ranks(["--version"], LocalCluster()) == 0
print(os.environ["OMP_NUM_THREADS"])
"""
STOPPED = RankError("told to stop", Preempted.exit_code)
WRONG = RankError("data.url: is wrong", 2)


def test_ranks_stopped_for_a_failed_peer_are_not_its_cause() -> None:
    assert causes([STOPPED, WRONG, STOPPED]) == [WRONG]


def test_a_stop_is_told_where_nothing_failed() -> None:
    assert causes([STOPPED, STOPPED]) == [STOPPED, STOPPED]
    assert causes([]) == []


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `run_ranks` sets is of this test alone."""
    monkeypatch.setenv("LDM_PARENT_PID", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("own_environment")
def test_a_first_machine_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SECONDS_TO_MEET", 1)
    (port,) = free_ports(1)
    said = f"number 1 of 2, does not meet the others at 127.0.0.1:{port} .*cluster.interface"
    with pytest.raises(RunError, match=said):
        run_ranks(["--version"], SlurmCluster(gpus=0, nodes=2), Node(1, 2, "127.0.0.1", port))


@pytest.mark.usefixtures("own_environment")
def test_a_port_that_another_program_has_is_one_line() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RunError, match=f"the others at 127.0.0.1:{port} .*cluster.port"):
            run_ranks(["--version"], SlurmCluster(gpus=0, nodes=2), Node(0, 2, "127.0.0.1", port))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds to cores")
def test_ranks_share_the_cores_that_they_may_use_and_know_their_own_packages(
    tmp_path: Path,
) -> None:
    """A scheduler may have given a job few of a machine's many; the folder may hold anything."""
    for name in ("conf", "data", "training", "launch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    one = str(min(os.sched_getaffinity(0)))
    told = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    start = ["taskset", "--cpu-list", one, sys.executable, "-P", "-c", START]
    done = subprocess.run(start, cwd=tmp_path, env=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1"


def test_a_machine_of_a_job_whose_ranks_share_the_work_waits_for_no_other(tmp_path: Path) -> None:
    """The second may come after the first has gone, as a pod that was lost does."""
    tiny_images(tmp_path / "pictures", 8)
    job = (
        "cluster=slurm",
        "cluster.nodes=2",
        "cluster.gpus=0",
        "cluster.processes=2",
        "shard_samples=2",
    )
    source = ("source=folder", f"source.path={tmp_path}/pictures", "size=16", "processes=1")
    told = {"LDM_JOB": "slurm", "LDM_ADDRESS": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    for number in ("0", "1"):
        done = subprocess.run(
            [sys.executable, *LDM, "shard", *source, f"out={tmp_path}/images", *job],
            env={**os.environ, **told, "SLURM_NODEID": number},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        whole = (tmp_path / "images" / "manifest.json").exists()
        assert whole == (number == "1")
