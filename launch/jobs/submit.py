"""Hands a command to a scheduler, or shows what it would hand over."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from conf.clusters import KubernetesCluster, RemoteCluster, SlurmCluster
from conf.errors import UserError
from launch.jobs.kubernetes import kubernetes_manifest
from launch.jobs.slurm import slurm_script
from launch.jobs.tools import run_tool

RENDER = "cluster.render"


def submit(command: str, overrides: list[str], cluster: RemoteCluster) -> int:
    """Submit `ldm COMMAND OVERRIDES` as a job and print its id, or print the job itself.

    Raises:
        UserError: An argument cannot be carried by a job, or the scheduler refuses it.
    """
    arguments = [one for one in overrides if one.partition("=")[0] != RENDER]
    for one in (one for one in arguments if not carried(one)):
        name = one.partition("=")[0]
        raise UserError(
            f"{name}={one[len(name) + 1 :]!r}",
            "has a line break or another sign without a shape, which no job can carry",
            "leave it out; prompts can be given as a file",
        )
    name = cluster.name or job_name(command, arguments)
    rendered, hand_over = _ways(command, arguments, cluster, name)
    if cluster.render:
        print(rendered, end="")
        return 0
    job = hand_over(rendered)
    print(f"{job}  (ldm status job={job}; ldm logs job={job}; ldm stop job={job})")
    return 0


def carried(argument: str) -> bool:
    """Whether a script and a YAML file hold an argument as it is: printable, and Unicode."""
    return all(one == " " or one.isprintable() for one in argument)


def job_name(command: str, arguments: list[str]) -> str:
    """A name that the same command has every time, and others have not."""
    digest = hashlib.sha256("\0".join([command, *arguments]).encode()).hexdigest()
    return f"ldm-{command}-{digest[:8]}"


def _ways(
    command: str, arguments: list[str], cluster: RemoteCluster, name: str
) -> tuple[str, Callable[[str], str]]:
    """The job, and what submits it and returns its id."""
    match cluster:
        case SlurmCluster():
            script = slurm_script(name, [command, *arguments], cluster)
            return script, lambda job: _slurm(job, cluster)
        case KubernetesCluster():
            manifest = kubernetes_manifest(name, [command, *arguments], cluster)
            return manifest, lambda job: _kubernetes(job, cluster, name)
    raise AssertionError(cluster.kind)


def _slurm(script: str, cluster: SlurmCluster) -> str:
    Path(cluster.logs).mkdir(parents=True, exist_ok=True)  # or Slurm drops the job without a word
    told = run_tool("cluster=slurm", "sbatch", "--parsable", given=script)
    return f"slurm:{told.strip().partition(';')[0]}"


def _kubernetes(manifest: str, cluster: KubernetesCluster, name: str) -> str:
    namespace = f"--namespace={cluster.namespace}"
    run_tool("cluster=kubernetes", "kubectl", namespace, "create", "-f", "-", given=manifest)
    return f"kubernetes:{cluster.namespace}/{name}"
