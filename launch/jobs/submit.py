"""Hands a command to a scheduler, or shows what it would hand over."""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from conf.clusters import (
    KubernetesCluster,
    RemoteCluster,
    SkyPilotCluster,
    SlurmCluster,
    cluster_image,
)
from conf.compose import compose_typed
from conf.errors import UserError
from conf.groups import ClusterConfig
from conf.rules import check
from conf.secrets import has_credentials
from conf.space import Choices, parse_space
from launch.jobs.kubernetes import kubernetes_manifest
from launch.jobs.kubernetes_jobs import submit_kubernetes
from launch.jobs.skypilot import skypilot_task
from launch.jobs.skypilot_jobs import submit_skypilot
from launch.jobs.slurm import slurm_script
from launch.jobs.tools import run_tool
from training.tracking.code import code_state, packed

RENDER = "cluster.render"
ONE_WRITER = ("train", "autoencoder")  # of others any number may make the same thing together
# Linux lets a variable have 128 KiB, its name included.
LARGEST_CODE = 120_000


def submit(command: str, overrides: list[str], cluster: RemoteCluster, out: str = "") -> int:
    """Submit `ldm COMMAND OVERRIDES` as a job and print its id, or print the job itself.

    Args:
        command: Without `-m`.
        overrides: As they were typed.
        cluster: Where it shall run, by them.
        out: Where it writes, by them, unless it is a sweep.

    Raises:
        UserError: An argument or the code's changes cannot be carried by a job, or the scheduler
            refuses it.
    """
    arguments = [one for one in overrides if one.partition("=")[0] != RENDER]
    for one in (one for one in arguments if not carried(one)):
        name = one.partition("=")[0]
        raise UserError(
            f"{name}={one[len(name) + 1 :]!r}",
            "has a line break or another sign without a shape, which no job can carry",
            "leave it out; prompts can be given as a file",
        )
    for one in (one for one in arguments if has_credentials(one)):  # of a sweep, any value
        wrong = "holds credentials, which would be readable in the job"
        raise UserError(f"{one.partition('=')[0]}=...", wrong, "give them in the environment")
    name = cluster.name or job_name(command, arguments, out)
    rendered, hand_over = _ways([command, *arguments], submitted_code(cluster), cluster, name)
    if cluster.render:
        print(rendered, end="")
        return 0
    job = hand_over(rendered)
    print(f"{job}  (ldm status job={job}; ldm logs job={job}; ldm stop job={job})")
    image = cluster_image(cluster)
    if image and "@sha256:" not in image:
        moves = "has no digest, so another image may have its name when the job starts"
        print(f"{image} {moves}; the run's record has the name alone", file=sys.stderr)
    return 0


def swept_on(command: str, overrides: list[str]) -> RemoteCluster | None:
    """Where the workers of a sweep, `train -m` or `evaluate -m`, shall run; None is here.

    Raises:
        UserError: The settings are no sweep that a job could run.
    """
    if not any(one.partition("=")[0] == "cluster" for one in overrides):
        return None
    fixed, swept = parse_space(overrides)
    for name in (dim.name for dim in swept if dim.name.partition(".")[0] == "cluster"):
        raise UserError(name, "is of the sweep as a whole", f"give one value: {name}=...")
    first = [
        f"{dim.name}={dim.values[0] if isinstance(dim, Choices) else dim.low}" for dim in swept
    ]
    config = compose_typed(command, [*fixed, *first])
    check(config)
    return config.cluster if isinstance(config.cluster, RemoteCluster) else None


def worker_overrides(overrides: list[str]) -> list[str]:
    """Those of a worker, which runs its trials on the machine that it is on."""
    here = {f"cluster.{item.name}" for item in fields(ClusterConfig)}
    names = [one.partition("=")[0] for one in overrides]
    return [
        one
        for one, name in zip(overrides, names, strict=True)
        if name.partition(".")[0] != "cluster" or name in here
    ]


def submitted_code(cluster: RemoteCluster) -> str:
    """What is known of the code here, packed for a job's environment; nothing if git knows none.

    Raises:
        UserError: Its changes are too many for that.
    """
    state = code_state()
    if state.revision is None:
        return ""
    text = packed(state)
    if len(text) > LARGEST_CODE:
        raise UserError(
            f"cluster={cluster.kind}",
            f"the code's changes since its last commit are {len(text) / 1e3:,.0f} kB when packed, "
            f"more than a job can carry ({LARGEST_CODE / 1e3:,.0f} kB)",
            "commit them",
        )
    return text


def carried(argument: str) -> bool:
    """Whether a script and a YAML file hold an argument as it is: printable, and Unicode."""
    return all(one == " " or one.isprintable() for one in argument)


def job_name(command: str, arguments: list[str], out: str = "") -> str:
    """A name that the same command has every time, and others have not.

    A training's is that of its run, whatever else is asked for: no two jobs may write one.

    Args:
        command: Without `-m`.
        arguments: Of it.
        out: Where it writes, as the settings have it.
    """
    told = arguments
    if command in ONE_WRITER and "-m" not in arguments:
        told = [place(out)]
    digest = hashlib.sha256("\0".join([command, *told]).encode()).hexdigest()
    return f"ldm-{command}-{digest[:8]}"


def place(url: str) -> str:
    """One spelling of a prefix, however it is spelt: what `data.storage` would open, without it."""
    scheme, sign, rest = url.partition("://")
    if sign and scheme != "file":
        return f"{scheme}://{rest.rstrip('/')}"
    path = rest if sign else url.removeprefix("file:")
    return str(Path(path).expanduser().resolve())


def _ways(
    arguments: list[str], code: str, cluster: RemoteCluster, name: str
) -> tuple[str, Callable[[str], str]]:
    """The job, and what submits it and returns its id."""
    match cluster:
        case SlurmCluster():
            script = slurm_script(name, arguments, code, cluster)
            return script, lambda job: _slurm(job, cluster)
        case KubernetesCluster():
            manifest = kubernetes_manifest(name, arguments, code, cluster)
            return manifest, lambda job: submit_kubernetes(name, job, cluster)
        case SkyPilotCluster():
            task = skypilot_task(name, arguments, code, cluster)
            return task, lambda job: submit_skypilot(name, job, cluster)
    raise AssertionError(cluster.kind)


def _slurm(script: str, cluster: SlurmCluster) -> str:
    try:  # or Slurm drops the job without a word
        Path(cluster.logs).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        wrong = f"is no folder, and cannot be made one ({error.strerror})"
        remedy = "give one that you and the job's machines may write to"
        raise UserError(f"cluster.logs={cluster.logs}", wrong, remedy) from None
    told = run_tool("cluster=slurm", "sbatch", "--parsable", given=script)
    return f"slurm:{told.strip().partition(';')[0]}"
