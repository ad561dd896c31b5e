"""The settings of a job, by scheduler: where a command can run besides this machine."""

import re
from dataclasses import dataclass

from conf.fields import setting
from conf.groups import ClusterConfig

JOBSET_PART = "ldm"  # the one job of a JobSet; its pods have it in their names


@dataclass(kw_only=True, slots=True)
class LocalCluster(ClusterConfig):
    """Processes on this machine."""

    kind: str = setting("which cluster this is", "local")


@dataclass(kw_only=True, slots=True)
class RemoteCluster(ClusterConfig):
    """A job of a scheduler: one command, on all ranks of all its machines."""

    nodes: int = setting("machines of the job, with cluster.processes ranks each", 1, low=1)
    gpus: int | None = setting(
        "GPUs of each machine; null is cluster.processes, 0 is none", None, low=0
    )
    cpus: int | None = setting("CPU cores of each machine; null is the scheduler's", None, low=1)
    memory: str | None = setting("memory of each machine, as 200G; null is the scheduler's", None)
    name: str | None = setting(
        "name of the job: lower-case letters, digits and -; null makes one of the command", None
    )
    env: list[str] = setting(
        "variables for every rank, as ['NCCL_DEBUG=INFO']; secrets have other ways", []
    )
    interface: str | None = setting(
        "network interface between the machines, for NCCL and gloo; null lets them choose", None
    )
    efa: bool = setting("send NCCL's messages through AWS's EFA", False)
    render: bool = setting("show what would be submitted, and submit nothing", False)


@dataclass(kw_only=True, slots=True)
class SlurmCluster(RemoteCluster):
    """A job of Slurm, submitted with sbatch."""

    kind: str = setting("which cluster this is", "slurm")
    partition: str | None = setting("partition; null is Slurm's default", None)
    account: str | None = setting("account that is charged; null is Slurm's default", None)
    constraint: str | None = setting("features that machines must have; null is none", None)
    time: str | None = setting("time limit, as 24:00:00; null is the partition's", None)
    stop_seconds: int = setting(
        "seconds before the time limit at which training saves and the job is queued again",
        300,
        low=10,
        high=65535,
    )
    container: str | None = setting(
        "image that has `ldm`, for srun's --container-image (pyxis); null is this Python", None
    )
    container_mounts: list[str] = setting("paths that the container sees, as ['/data:/data']", [])
    address: str | None = setting(
        "address of the first machine, where ranks meet; null is its name in Slurm", None
    )
    logs: str = setting("folder of the job's log", "logs")
    workers: int = setting(
        "of `ldm train -m`: jobs, one machine each, that share the trials of a sweep", 1, low=1
    )
    flags: list[str] = setting("more flags of sbatch, as ['--qos=high']", [])


@dataclass(kw_only=True, slots=True)
class KubernetesCluster(RemoteCluster):
    """An Indexed Job of Kubernetes, alone or in a JobSet, submitted with kubectl."""

    kind: str = setting("which cluster this is", "kubernetes")
    image: str = setting("image that has `ldm`, best with its digest")
    namespace: str = setting("namespace of the job", "default")
    secrets: list[str] = setting("secrets whose keys become variables of every rank", [])
    volumes: list[str] = setting("persistent volume claims, as ['CLAIM:/path']", [])
    selector: list[str] = setting("labels that machines must have, as ['KEY=VALUE']", [])
    gpu_resource: str = setting("what GPUs are called", "nvidia.com/gpu")
    shm_gb: float = setting("shared memory of each machine, in GB", 16.0, low=0.0625)
    user: int = setting("number of the user and group that the image runs as", 10001, low=1)
    grace_seconds: int = setting("seconds to save in, when told to stop", 600, low=1)
    retries: int = setting("failures of machines after which the job fails", 20, low=0)
    jobset: bool = setting(
        "make a JobSet, which starts all machines again together when one fails; the cluster has "
        "to have its controller",
        False,
    )


@dataclass(kw_only=True, slots=True)
class SkyPilotCluster(RemoteCluster):
    """A managed job of SkyPilot, submitted with sky."""

    kind: str = setting("which cluster this is", "skypilot")
    image: str = setting("container image that has `ldm`, best with its digest")
    infra: str | None = setting(
        "cloud, or cloud/region, or k8s/CONTEXT, as aws/us-east-1; null lets SkyPilot choose", None
    )
    accelerator: str | None = setting(
        "kind of GPU, as SkyPilot calls it, such as H100; needed unless cluster.gpus=0", None
    )
    spot: bool = setting("machines that cost less, and may be taken away at any time", False)
    secrets: list[str] = setting(
        "variables of this shell that every rank shall have and the job's file shall not hold", []
    )
    retries: int = setting(
        "failures after which the job fails; a mistake counts as one, 75 and lost machines do not",
        3,
        low=0,
    )


def cluster_gpus(cluster: RemoteCluster) -> int:
    """GPUs of each machine."""
    return cluster.processes if cluster.gpus is None else cluster.gpus


def slurm_seconds(time: str) -> int | None:
    """A time limit as Slurm reads it, in seconds; None if it is none."""
    days = re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?", time)
    hours = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+)", time)
    if days:
        parts = [int(part or 0) for part in days.groups()]
    elif hours and ":" in time:
        parts = [0, *(int(part or 0) for part in hours.groups())]
    elif hours:
        parts = [0, 0, int(time), 0]  # one number alone is of minutes
    else:
        return None
    return sum(part * each for part, each in zip(parts, (86400, 3600, 60, 1), strict=True))


def sky_memory(memory: str) -> str | None:
    """An amount of memory as SkyPilot writes it, 200GB for 200G; None if it is none."""
    found = re.fullmatch(r"(\d+)([KMGTP])B?", memory)
    return f"{found[1]}{found[2]}B" if found else None


def cluster_image(cluster: ClusterConfig) -> str | None:
    """The container image that a job's machines run, if they run one."""
    match cluster:
        case SlurmCluster():
            return cluster.container
        case KubernetesCluster() | SkyPilotCluster():
            return cluster.image
    return None


def cluster_nodes(cluster: ClusterConfig) -> int:
    """The machines that a command runs on."""
    return cluster.nodes if isinstance(cluster, RemoteCluster) else 1
