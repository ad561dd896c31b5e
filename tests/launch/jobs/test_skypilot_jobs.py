"""Jobs of SkyPilot: submitting, asking and stopping, against answers that the real one has given.

tests/integration/skypilot asks the real one whether these command lines and answers are its own.
"""

import json
from pathlib import Path

import pytest
import yaml

from conf.errors import RunError
from launch.cli import run
from launch.jobs.node import Node, this_node
from tests.launch.jobs.test_quoting import SKYPILOT

TRAIN = ["train", "data.url=s3://b/latents", "out=s3://b/run", "train.samples=8", "engine=ddp"]
SKY = ["cluster=skypilot", f"cluster.image=registry/ldm@sha256:{'0' * 64}", "cluster.gpus=0"]
# Of 0.14.1, where nothing looks after jobs yet; and where a cloud's own packages are missing.
NO_JOBS = "sky.exceptions.ClusterNotUpError: No in-progress managed jobs."
NO_CLOUD = (
    "ImportError: Failed to import dependencies for Kubernetes. "
    'Try running: pip install "skypilot[kubernetes]"'
)
STARTING = "\x1b[2mFailed to connect to SkyPilot API server at http://127.0.0.1:46580. Starting\n"


class Sky:
    """A program `sky` that answers as it is told, and keeps what it was asked.

    Args:
        folder: Where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "sky"
        program.write_text(
            "#!/bin/sh\n"
            f"cd {folder}\n"
            'printf "%s " "$@" >> asked; echo >> asked\n'
            'for last; do :; done; [ ! -f "$last" ] || cat "$last" > task\n'
            'cat "$2.out"; cat "$2.err" >&2; exit "$(cat "$2.code")"\n'
        )
        program.chmod(0o755)
        for command in ("launch", "queue", "logs", "cancel"):
            self.answers(command)

    def answers(self, command: str, out: str = "", err: str = "", code: int = 0) -> None:
        """What it says to `sky jobs COMMAND` from now on."""
        for name, text in {"out": out, "err": err, "code": str(code)}.items():
            (self.folder / f"{command}.{name}").write_text(text)

    def knows(self, *jobs: tuple[int, str, str]) -> None:
        """The jobs that there are, as (number, name, status)."""
        told = [
            {"job_id": number, "job_name": name, "status": status, "recovery_count": number - 1}
            for number, name, status in jobs
        ]
        self.answers("queue", STARTING + json.dumps(told, indent=2) + "\n")

    @property
    def asked(self) -> list[str]:
        """Its command lines."""
        return (self.folder / "asked").read_text().splitlines()


@pytest.fixture
def sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sky:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Sky(tmp_path)


def test_a_task_is_submitted_by_its_name_and_secrets_by_theirs(
    sky: Sky, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", "canary")
    sky.answers("queue", err=NO_JOBS, code=1)
    assert run([*TRAIN, *SKY, "cluster.name=it", "cluster.secrets=[MY_KEY]"]) == 0
    assert capsys.readouterr().out.startswith("skypilot:it  (ldm status job=skypilot:it;")
    (launch,) = (line for line in sky.asked if line.startswith("jobs launch"))
    assert "--yes --detach-run --name=it --secret=MY_KEY " in launch
    text = (sky.folder / "task").read_text()
    assert yaml.safe_load(text)["name"] == "it"
    assert "canary" not in text and "canary" not in "".join(sky.asked)


def test_a_secret_that_is_not_set_is_refused(sky: Sky, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*TRAIN, *SKY, "cluster.secrets=[NOT_THERE]"]) == 2
    assert capsys.readouterr().err.startswith("ldm: cluster.secrets=[NOT_THERE]: is not set")


@pytest.mark.parametrize(("status", "code"), [("RECOVERING", 2), ("SUCCEEDED", 0), ("FAILED", 0)])
def test_a_run_is_not_written_by_two_jobs_at_a_time(
    status: str, code: int, sky: Sky, capsys: pytest.CaptureFixture[str]
) -> None:
    sky.knows((1, "other", "RUNNING"), (2, "it", status))
    assert run([*TRAIN, *SKY, "cluster.name=it"]) == code
    shown = capsys.readouterr().err
    said = "ldm: cluster=skypilot: a job it, which is this run, has not ended; "
    assert shown.startswith(said) and shown.count("\n") == 1 if code else shown == ""
    assert any(line.startswith("jobs launch") for line in sky.asked) is not bool(code)


def test_what_it_refuses_is_one_line(sky: Sky, capsys: pytest.CaptureFixture[str]) -> None:
    sky.knows()
    sky.answers("launch", "YAML to run: task.yaml\n", NO_CLOUD + "\n", 1)
    assert run([*TRAIN, *SKY]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"ldm: cluster=skypilot: sky refuses: {NO_CLOUD}; ")
    assert shown.count("\n") == 1


def test_jobs_of_a_name_are_told_the_newest_first(
    sky: Sky, capsys: pytest.CaptureFixture[str]
) -> None:
    sky.knows((1, "it", "FAILED"), (2, "other", "RUNNING"), (3, "it", "RUNNING"))
    assert run(["status", "job=skypilot:it"]) == 0
    assert capsys.readouterr().out == (
        "ID=3 Status=RUNNING Recoveries=2\nID=1 Status=FAILED Recoveries=0\n"
    )


def test_the_log_of_the_newest_is_shown_also_if_it_has_failed(
    sky: Sky, capsys: pytest.CaptureFixture[str]
) -> None:
    sky.knows((1, "it", "FAILED"), (3, "it", "FAILED"))
    sky.answers("logs", "a line\n", code=100)
    assert run(["logs", "job=skypilot:it", "lines=7"]) == 0
    assert capsys.readouterr().out == "a line\n"
    assert sky.asked[-1] == "jobs logs --no-follow --tail=7 3 "
    sky.answers("logs", err="no answer", code=1)
    assert run(["logs", "job=skypilot:it"]) == 2


def test_those_that_go_on_are_stopped(sky: Sky, capsys: pytest.CaptureFixture[str]) -> None:
    sky.knows((1, "it", "FAILED"), (2, "other", "RUNNING"), (3, "it", "STARTING"))
    assert run(["stop", "job=skypilot:it"]) == 0
    assert capsys.readouterr().out == "skypilot:it was STARTING\n"
    assert sky.asked[-1] == "jobs cancel --yes 3 "


@pytest.mark.parametrize("command", ["status", "logs", "stop"])
@pytest.mark.parametrize("known", [True, False])
def test_a_job_that_is_not_there_is_one_line(
    command: str, known: bool, sky: Sky, capsys: pytest.CaptureFixture[str]
) -> None:
    if known:
        sky.knows((2, "other", "RUNNING"))
    else:
        sky.answers("queue", err=NO_JOBS, code=1)
    assert run([command, "job=skypilot:it"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("ldm: job=skypilot:it: SkyPilot knows no such job; ")
    assert shown.count("\n") == 1


def test_ranks_meet_at_the_first_of_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYPILOT_NODE_IPS", "10.0.0.7\n10.0.0.8")
    monkeypatch.setenv("SKYPILOT_NODE_RANK", "1")
    assert this_node(SKYPILOT) == Node(1, 2, "10.0.0.7", 29400)
    monkeypatch.setenv("SKYPILOT_NODE_RANK", "2")
    with pytest.raises(RunError, match="SKYPILOT_NODE_RANK=2 SKYPILOT_NODE_IPS=10"):
        this_node(SKYPILOT)
