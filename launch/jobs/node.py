"""What a job tells each of its machines: the names are those that the rendered jobs set."""

import os
from dataclasses import dataclass

from conf.clusters import RemoteCluster, cluster_image
from conf.errors import RunError
from training.tracking.code import CODE, IMAGE

JOB, ADDRESS = "LDM_JOB", "LDM_ADDRESS"
# The number of a machine among those of its job, from 0, by the scheduler's own name for it.
NODE_RANKS = {
    "slurm": "SLURM_NODEID",
    "kubernetes": "JOB_COMPLETION_INDEX",
    "skypilot": "SKYPILOT_NODE_RANK",
}
SKY_ADDRESSES = "SKYPILOT_NODE_IPS"  # a line for each machine, the first one first
PORT = 29400
# AWS's documentation of EFA with NCCL: libfabric's provider, and RDMA between GPUs.
EFA = ("FI_PROVIDER=efa", "FI_EFA_USE_DEVICE_RDMA=1")


@dataclass(frozen=True, slots=True)
class Node:
    """This machine among those of its job.

    Args:
        rank: Its number, from 0.
        count: How many there are.
        address: Of number 0, where ranks meet.
        port: There.
    """

    rank: int
    count: int
    address: str
    port: int


def in_job(cluster: RemoteCluster) -> bool:
    """Whether this process was started by a job that `ldm` has submitted."""
    return os.environ.get(JOB) == cluster.kind


def this_node(cluster: RemoteCluster) -> Node:
    """This machine, as the job's environment tells it.

    Raises:
        RunError: It tells no number or address.
    """
    name = NODE_RANKS[cluster.kind]
    told = SKY_ADDRESSES if cluster.kind == "skypilot" else ADDRESS
    rank, address = os.environ.get(name, ""), os.environ.get(told, "").partition("\n")[0]
    if not rank.isdecimal() or int(rank) >= cluster.nodes or not address:
        raise RunError(
            f"{name}={rank} {told}={address}: the job's environment names none of its "
            f"{cluster.nodes} machines; submit the command again"
        )
    port = cluster.port or PORT
    job = os.environ.get("SLURM_JOB_ID", "")
    if cluster.kind == "slurm" and not cluster.port and job.isdecimal():
        port = 20_000 + int(job) % 10_000  # jobs may share a machine
    return Node(int(rank), cluster.nodes, address, port)


def variables(cluster: RemoteCluster, code: str) -> dict[str, str]:
    """What every rank's environment shall hold, secrets apart.

    Args:
        cluster: Where it runs.
        code: What is known of the submitter's code, packed, or nothing.
    """
    given = [*(EFA if cluster.efa else ()), *cluster.env]
    network = {}
    if cluster.interface:
        network = {"NCCL_SOCKET_IFNAME": cluster.interface, "GLOO_SOCKET_IFNAME": cluster.interface}
    pairs = (text.partition("=") for text in given)
    record = {CODE: code, IMAGE: cluster_image(cluster)}
    return {
        JOB: cluster.kind,
        **{name: value for name, value in record.items() if value},
        **network,
        **{name: value for name, _, value in pairs},
    }
