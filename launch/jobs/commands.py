"""`ldm status`, `ldm logs`, `ldm stop`: a submitted job, by what submitting it printed."""

import re
from dataclasses import dataclass
from pathlib import Path

from conf.errors import UserError
from conf.schema import LogsCommand, StatusCommand, StopCommand
from launch.jobs.kubernetes import LABEL
from launch.jobs.tools import run_tool

FORMS = {
    "slurm": r"(?P<name>\d+)",
    "kubernetes": r"(?P<namespace>[a-z0-9][-a-z0-9.]*)/(?P<name>[a-z0-9][-a-z0-9]*)",
}


@dataclass(frozen=True, slots=True)
class Job:
    """A job by its id.

    Args:
        kind: Of scheduler.
        name: There; a number in Slurm.
        namespace: In Kubernetes.
    """

    kind: str
    name: str
    namespace: str = ""

    @property
    def setting(self) -> str:
        """As the user would type it."""
        place = f"{self.namespace}/" if self.namespace else ""
        return f"job={self.kind}:{place}{self.name}"


def parse_job(job: str) -> Job:
    """The job of an id.

    Raises:
        UserError: It is none.
    """
    kind, _, rest = job.partition(":")
    found = re.fullmatch(FORMS.get(kind, r"(?!)"), rest)
    if found is None:
        ways = "slurm:NUMBER or kubernetes:NAMESPACE/NAME"
        raise UserError(f"job={job}", "is no id of a job", f"give what submitting printed, {ways}")
    return Job(kind, **found.groupdict())


def status(config: StatusCommand) -> None:
    """Print what the scheduler says of a job.

    Raises:
        UserError: There is no such job, or the scheduler's program refuses.
    """
    job = parse_job(config.job)
    match job.kind:
        case "slurm":
            told = _slurm_record(job)
            names = ("JobState", "Reason", "NodeList", "RunTime", "Restarts", "ExitCode")
            print(" ".join(f"{name}={told[name]}" for name in names if name in told))
        case "kubernetes":
            _kubectl(job, "get", "jobs,pods", f"--selector={LABEL}={job.name}", "--output=wide")


def logs(config: LogsCommand) -> None:
    """Print the end of a job's log.

    Raises:
        UserError: There is no such job, it has no log yet, or the scheduler's program refuses.
    """
    job = parse_job(config.job)
    match job.kind:
        case "slurm":
            file = Path(_slurm_record(job)["StdOut"])
            try:
                lines = file.read_text(errors="replace").splitlines()
            except OSError as error:
                raise UserError(
                    job.setting,
                    f"its log {file} cannot be read ({error.strerror})",
                    "look at `ldm status`: a job that waits has none, other machines may have it",
                ) from None
            print("\n".join(lines[-config.lines :]))
        case "kubernetes":
            many = ("--prefix", "--max-log-requests=1000", f"--tail={config.lines}")
            _kubectl(job, "logs", f"--selector={LABEL}={job.name}", *many)


def stop(config: StopCommand) -> None:
    """Have a job save and end, and not be started again.

    Raises:
        UserError: There is no such job, or the scheduler's program refuses.
    """
    job = parse_job(config.job)
    match job.kind:
        case "slurm":
            _stop_slurm(job)
        case "kubernetes":
            # Pods are told at once, and have cluster.grace_seconds to save.
            names = (f"jobs/{job.name}", f"services/{job.name}", f"networkpolicies/{job.name}")
            _kubectl(job, "delete", "--wait=false", *names)


def _stop_slurm(job: Job) -> None:
    state = _slurm_record(job)["JobState"]
    if state == "PENDING":
        run_tool(job.setting, "scancel", job.name)
    elif state == "RUNNING":
        # As before its time limit, but that it may not be queued again.
        run_tool(job.setting, "scontrol", "update", f"JobId={job.name}", "Requeue=0")
        run_tool(job.setting, "scancel", "--batch", "--signal=USR1", job.name)
    print(f"{job.setting.removeprefix('job=')} was {state}")


def _slurm_record(job: Job) -> dict[str, str]:
    """What Slurm knows of a job; it forgets one some minutes after its end."""
    told = run_tool(job.setting, "scontrol", "--oneliner", "show", "job", job.name)
    return dict(re.findall(r"(?:^|\s)([A-Za-z:/]+)=(\S*)", told))


def _kubectl(job: Job, *arguments: str) -> None:
    told = run_tool(job.setting, "kubectl", f"--namespace={job.namespace}", *arguments)
    if not told.strip():
        raise UserError(job.setting, "Kubernetes knows no such job", "look at `kubectl get jobs`")
    print(told, end="")
