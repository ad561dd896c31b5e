"""What has become of a job of Slurm: one job, or the jobs of an array."""

import re
import time
from pathlib import Path

from conf.errors import UserError
from launch.jobs.tools import ToolRefused, run_tool

SHOWN = ("ArrayTaskId", "JobState", "Reason", "NodeList", "RunTime", "Restarts", "ExitCode")
# A value may hold blanks, as a folder's name does: it goes on to the next name.
FIELD = re.compile(r"(?:^|\s)([A-Za-z:/]+)=(.*?)(?=\s+[A-Z][A-Za-z:/]*=|\s*$)")
# Slurm's state codes after which nothing more becomes of a job.
OVER = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
}
LOOKS, SECONDS_BETWEEN = 20, 0.5


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

    A job may change between a look at it and what is done, so it is looked at again until there
    is nothing left to do.

    Raises:
        UserError: There is no such job, one does not let itself be stopped, or Slurm's program
            refuses.
    """
    found = _records(setting, name)
    was = dict.fromkeys(told["JobState"] for told in found)
    done: set[tuple[str, ...]] = set()  # the lives of jobs that know
    for _ in range(LOOKS):
        alive = [told for told in found if told["JobState"] not in OVER]
        left = [told for told in alive if _life(told) not in done]
        if not left:
            print(f"slurm:{name} was {', '.join(was)}")
            return
        for told in left:
            _end(setting, told)
            if told["JobState"] != "PENDING":  # which may have begun before it was cancelled
                done.add(_life(told))
        time.sleep(SECONDS_BETWEEN)
        found = _records(setting, name)
    states = ", ".join(dict.fromkeys(told["JobState"] for told in left))
    raise UserError(setting, f"is still {states}", "look at `ldm status`, and stop it again")


def _end(setting: str, told: dict[str, str]) -> None:
    """Tell a job to end, in the way that its state allows."""
    me = _number(told)
    if told["JobState"] == "PENDING":
        run_tool(setting, "scancel", "--state=PENDING", me)
        return
    if told["JobState"] == "COMPLETING":  # to begin again, or for good: then this does nothing
        run_tool(setting, "scancel", me)
        return
    try:
        run_tool(setting, "scontrol", "update", f"JobId={me}", "Requeue=0")
    except ToolRefused as error:
        if "already finished" in error.wrong:
            return
        raise
    if told["JobState"] == "RUNNING":  # as before its time limit
        run_tool(setting, "scancel", "--batch", "--signal=USR1", me)
    else:  # it has not begun, or stands still: it cannot save
        run_tool(setting, "scancel", me)


def _number(told: dict[str, str]) -> str:
    """What names this job alone: one of an array's may have the array's own number."""
    if "ArrayTaskId" not in told:
        return told["JobId"]
    tasks = told["ArrayTaskId"].partition("%")[0]
    return f"{told['ArrayJobId']}_{tasks if tasks.isdecimal() else f'[{tasks}]'}"


def _life(told: dict[str, str]) -> tuple[str, ...]:
    return (_number(told), told["JobState"], told["Restarts"])


def _records(setting: str, name: str) -> list[dict[str, str]]:
    """What Slurm knows of a job; it forgets one some minutes after its end."""
    told = run_tool(setting, "scontrol", "--oneliner", "show", "job", name)
    return [dict(FIELD.findall(line)) for line in told.splitlines() if line.strip()]
