"""What has become of a job of Slurm: one job, or the jobs of an array."""

import re
from pathlib import Path

from conf.errors import UserError
from launch.jobs.tools import run_tool

SHOWN = ("ArrayTaskId", "JobState", "Reason", "NodeList", "RunTime", "Restarts", "ExitCode")


def slurm_status(setting: str, name: str) -> None:
    """Print a line for each job.

    Args:
        setting: The job as the user would type it.
        name: Its number.

    Raises:
        UserError: There is no such job, or Slurm's program refuses.
    """
    for told in _records(setting, name):
        print(" ".join(f"{field}={told[field]}" for field in SHOWN if field in told))


def slurm_logs(setting: str, name: str, lines: int) -> None:
    """Print the end of each job's log.

    Raises:
        UserError: There is no such job, none has a log yet, or Slurm's program refuses.
    """
    files = dict.fromkeys(Path(told["StdOut"]) for told in _records(setting, name))
    there = [file for file in files if file.is_file()] or list(files)[:1]
    for file in there:
        try:
            text = file.read_text(errors="replace")
        except OSError as error:
            raise UserError(
                setting,
                f"its log {file} cannot be read ({error.strerror})",
                "look at `ldm status`: a job that waits has none, other machines may have it",
            ) from None
        if len(there) > 1:
            print(f"{file}:")
        print("\n".join(text.splitlines()[-lines:]))


def slurm_stop(setting: str, name: str) -> None:
    """Have jobs that run save and end, and those that wait never begin.

    Raises:
        UserError: There is no such job, or Slurm's program refuses.
    """
    states = []
    for told in _records(setting, name):
        states.append(told["JobState"])
        if told["JobState"] == "PENDING":
            run_tool(setting, "scancel", "--state=PENDING", told["JobId"])
        elif told["JobState"] == "RUNNING":
            # As before its time limit, but that it may not be queued again.
            run_tool(setting, "scontrol", "update", f"JobId={told['JobId']}", "Requeue=0")
            run_tool(setting, "scancel", "--batch", "--signal=USR1", told["JobId"])
    print(f"slurm:{name} was {', '.join(dict.fromkeys(states))}")


def _records(setting: str, name: str) -> list[dict[str, str]]:
    """What Slurm knows of a job; it forgets one some minutes after its end."""
    told = run_tool(setting, "scontrol", "--oneliner", "show", "job", name)
    lines = [line for line in told.splitlines() if line.strip()]
    return [dict(re.findall(r"(?:^|\s)([A-Za-z:/]+)=(\S*)", line)) for line in lines]
