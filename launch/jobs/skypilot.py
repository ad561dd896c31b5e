"""Jobs of SkyPilot: the task of a managed job, which starts it again on other machines."""

import shlex
from typing import Any

import yaml

from conf.clusters import SkyPilotCluster, cluster_gpus, sky_memory
from conf.errors import Preempted
from launch.jobs.node import variables


def skypilot_task(name: str, arguments: list[str], code: str, cluster: SkyPilotCluster) -> str:
    """The task of a job, as YAML.

    Args:
        name: Of the job.
        arguments: Of `ldm`; each reaches it as it is here.
        code: What is known of the submitter's code, packed, or nothing.
        cluster: Where it runs.
    """
    task = {
        "name": name,
        "num_nodes": cluster.nodes,
        "resources": _resources(cluster),
        "envs": variables(cluster, code),
        "run": f"exec {shlex.join(['ldm', *arguments])}\n",  # on every machine, by bash
    }
    return yaml.safe_dump(task, sort_keys=False, allow_unicode=True, width=1_000_000)


def _resources(cluster: SkyPilotCluster) -> dict[str, Any]:
    """What each machine shall be; of cores and memory SkyPilot finds the next larger ones."""
    gpus = cluster_gpus(cluster)
    values = {
        "infra": cluster.infra,
        "accelerators": {cluster.accelerator: gpus} if gpus else None,
        "cpus": f"{cluster.cpus}+" if cluster.cpus else None,
        "memory": f"{sky_memory(cluster.memory)}+" if cluster.memory else None,
        "use_spot": cluster.spot,
        "image_id": f"docker:{cluster.image}",
        "job_recovery": {
            "max_restarts_on_errors": cluster.retries,
            "recover_on_exit_codes": [Preempted.exit_code],  # saved; no error
        },
    }
    return {name: value for name, value in values.items() if value is not None}
