"""The settings of a job, by scheduler: where a command can run besides this machine."""

from dataclasses import dataclass

from conf.fields import setting
from conf.groups import ClusterConfig


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
    flags: list[str] = setting("more flags of sbatch, as ['--qos=high']", [])


@dataclass(kw_only=True, slots=True)
class KubernetesCluster(RemoteCluster):
    """An Indexed Job of Kubernetes, submitted with kubectl."""

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


def cluster_nodes(cluster: ClusterConfig) -> int:
    """The machines that a command runs on."""
    return cluster.nodes if isinstance(cluster, RemoteCluster) else 1
