"""What has become of the jobs of SkyPilot that have one name: a name may be given again."""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from conf.clusters import SkyPilotCluster
from conf.errors import UserError
from launch.jobs.tools import ToolRefused, run_tool

# SkyPilot may first have to make the machine that looks after its jobs.
SECONDS = 1800.0
NO_JOBS = "No in-progress managed jobs"
# How a job of SkyPilot has ended is also what showing its log ends with.
LOG_CODES = (0, 100, 101, 103)


def submit_skypilot(name: str, task: str, cluster: SkyPilotCluster) -> str:
    """Submit a task; the job's id.

    Raises:
        UserError: A secret is not set, a job of that name goes on, or SkyPilot refuses.
    """
    for secret in (one for one in cluster.secrets if one not in os.environ):
        wrong, remedy = "is not set in this shell", f"export {secret}, or leave it out"
        raise UserError(f"cluster.secrets=[{secret}]", wrong, remedy)
    setting = "cluster=skypilot"
    if not all(is_over(told["status"]) for told in _known(setting, name)):
        raise UserError(
            setting,
            f"a job {name}, which is this run, has not ended",
            f"`ldm stop job=skypilot:{name}` ends it; another run needs another cluster.name",
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "task.yaml"
        file.write_text(task)
        run_tool(setting, *launching(name, cluster.secrets, str(file)), seconds=SECONDS)
    return f"skypilot:{name}"


def launching(name: str, secrets: list[str], file: str) -> list[str]:
    """The command line that submits a task; SkyPilot reads secrets' values in its environment."""
    named = [f"--secret={secret}" for secret in secrets]
    return ["sky", "jobs", "launch", "--yes", "--detach-run", f"--name={name}", *named, file]


def listing() -> list[str]:
    """The command line that tells of all jobs."""
    return ["sky", "jobs", "queue", "--all", "--output=json"]


def showing(number: int, lines: int) -> list[str]:
    """The command line that shows the end of a job's log."""
    return ["sky", "jobs", "logs", "--no-follow", f"--tail={lines}", str(number)]


def stopping(numbers: list[int]) -> list[str]:
    """The command line that ends jobs."""
    return ["sky", "jobs", "cancel", "--yes", *map(str, numbers)]


def is_over(status: str) -> bool:
    """Whether nothing more becomes of a job with this status."""
    return re.fullmatch(r"SUCCEEDED|CANCELLED|FAILED.*", status) is not None


def skypilot_status(setting: str, name: str) -> None:
    """Print a line for each job of a name, the newest first.

    Args:
        setting: The job as the user would type it.
        name: Of the job.

    Raises:
        UserError: There is no such job, or SkyPilot refuses.
    """
    for told in _jobs(setting, name):
        shown = {"ID": "job_id", "Status": "status", "Recoveries": "recovery_count"}
        print(" ".join(f"{word}={told[field]}" for word, field in shown.items()))


def skypilot_logs(setting: str, name: str, lines: int) -> None:
    """Print the end of the newest job's log.

    Raises:
        UserError: There is no such job, or SkyPilot refuses.
    """
    newest = _jobs(setting, name)[0]["job_id"]
    print(run_tool(setting, *showing(newest, lines), fine=LOG_CODES), end="")


def skypilot_stop(setting: str, name: str) -> None:
    """End the jobs of a name; SkyPilot takes their machines at once.

    Raises:
        UserError: There is no such job, or SkyPilot refuses.
    """
    jobs = _jobs(setting, name)
    going = [told["job_id"] for told in jobs if not is_over(told["status"])]
    if going:
        run_tool(setting, *stopping(going), seconds=SECONDS)
    print(f"skypilot:{name} was {jobs[0]['status']}")


def _jobs(setting: str, name: str) -> list[dict[str, Any]]:
    found = _known(setting, name)
    if not found:
        raise UserError(setting, "SkyPilot knows no such job", "look at `sky jobs queue`")
    return found


def _known(setting: str, name: str) -> list[dict[str, Any]]:
    """The jobs of a name, the newest first."""
    try:
        told = run_tool(setting, *listing(), seconds=SECONDS)
    except ToolRefused as error:
        if NO_JOBS in error.wrong:  # there is nothing yet that looks after jobs
            return []
        raise
    found = re.search(r"^\[", told, re.MULTILINE)  # what stands before is for people
    jobs = json.loads(told[found.start() :]) if found else []
    named = [job for job in jobs if job["job_name"] == name]
    return sorted(named, key=lambda job: -job["job_id"])
