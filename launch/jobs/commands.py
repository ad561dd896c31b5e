"""`ldm status`, `ldm logs`, `ldm stop`: a submitted job, by what submitting it printed."""

import re
from dataclasses import dataclass

from conf.errors import UserError
from conf.schema import LogsCommand, StatusCommand, StopCommand
from launch.jobs.kubernetes_jobs import kubernetes_logs, kubernetes_status, kubernetes_stop
from launch.jobs.skypilot_jobs import skypilot_logs, skypilot_status, skypilot_stop
from launch.jobs.slurm_jobs import slurm_logs, slurm_status, slurm_stop

IN_NAMESPACE = r"(?P<namespace>[a-z0-9][-a-z0-9.]*)/(?P<name>[a-z0-9][-a-z0-9]*)"
FORMS = {
    "slurm": r"(?P<name>\d+)",
    "kubernetes": IN_NAMESPACE,
    "jobset": IN_NAMESPACE,
    "skypilot": r"(?P<name>[a-z][-a-z0-9]*)",
}
WAYS = "slurm:NUMBER, kubernetes:NAMESPACE/NAME, jobset:NAMESPACE/NAME or skypilot:NAME"


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
        raise UserError(f"job={job}", "is no id of a job", f"give what submitting printed, {WAYS}")
    return Job(kind, **found.groupdict())


def status(config: StatusCommand) -> None:
    """Print what the scheduler says of a job.

    Raises:
        UserError: There is no such job, or the scheduler's program refuses.
    """
    job = parse_job(config.job)
    match job.kind:
        case "slurm":
            slurm_status(job.setting, job.name)
        case "skypilot":
            skypilot_status(job.setting, job.name)
        case _:
            kubernetes_status(job.setting, job.kind, job.namespace, job.name)


def logs(config: LogsCommand) -> None:
    """Print the end of a job's log.

    Raises:
        UserError: There is no such job, it has no log yet, or the scheduler's program refuses.
    """
    job = parse_job(config.job)
    match job.kind:
        case "slurm":
            slurm_logs(job.setting, job.name, config.lines)
        case "skypilot":
            skypilot_logs(job.setting, job.name, config.lines)
        case _:
            kubernetes_logs(job.setting, job.kind, job.namespace, job.name, config.lines)


def stop(config: StopCommand) -> None:
    """Have a job save and end, and not be started again.

    Raises:
        UserError: There is no such job, or the scheduler's program refuses.
    """
    job = parse_job(config.job)
    match job.kind:
        case "slurm":
            slurm_stop(job.setting, job.name)
        case "skypilot":
            skypilot_stop(job.setting, job.name)
        case _:
            kubernetes_stop(job.setting, job.kind, job.namespace, job.name)
