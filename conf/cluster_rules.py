"""Rules of the settings of jobs: what a job could not carry, or should not, is refused here."""

import re
from dataclasses import fields
from typing import Any

from conf.clusters import (
    JOBSET_PART,
    KubernetesCluster,
    RemoteCluster,
    SkyPilotCluster,
    SlurmCluster,
    cluster_gpus,
    cluster_nodes,
    sky_memory,
    slurm_seconds,
)
from conf.errors import UserError
from conf.groups import ClusterConfig
from conf.place_rules import check_places
from conf.secrets import holds_secret, is_secret_name

KINDS = ("local", "slurm", "kubernetes", "skypilot")
NAME = re.compile(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?")
ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
LONGEST_LABEL = 63  # of a name in DNS
# Neither sbatch nor a shell, nor the splitting of lists and pairs, takes any of these as special.
PLAIN = re.compile(r"[A-Za-z0-9_.,:/@%+=&|()\[\]*-]+")
SLURM_EARLY = 60  # seconds by which its signal may come too early, says sbatch's manual
ACCOUNTING = "--wckey="  # Slurm's name for a label that a job is accounted under
LEAST_LIFE = 60  # seconds before it: to start, and to make some steps
PLAIN_SETTINGS = (
    *("memory", "interface", "partition", "account", "constraint", "time", "container"),
    *("container_mounts", "address", "logs", "flags", "image", "volumes", "selector"),
    *("gpu_resource", "infra", "accelerator"),
)


def check_cluster(config: Any, cluster: ClusterConfig, spread: bool) -> None:
    """Check where a command shall run.

    Args:
        config: The command's configuration.
        cluster: Of it.
        spread: Whether the command can be spread over ranks.

    Raises:
        UserError: The first rule that does not hold.
    """
    if cluster.kind not in KINDS:
        raise UserError(
            f"cluster={cluster.kind}", "is not known", f"choose one of {', '.join(KINDS)}"
        )
    if not spread and cluster_nodes(cluster) * cluster.processes > 1:
        name = "nodes" if cluster_nodes(cluster) > 1 else "processes"
        raise UserError(
            f"cluster.{name}={getattr(cluster, name)}", "this command runs on one rank", "give 1"
        )
    if isinstance(cluster, RemoteCluster):
        _remote(cluster)
        if hasattr(config, "sweep"):
            _sweep(cluster)
        check_places(config, cluster)
    if isinstance(cluster, SlurmCluster):
        _time(cluster)
        for flag in cluster.flags:
            if not flag.startswith("--"):
                raise UserError(f"cluster.flags={flag}", "is no flag", "write it as --NAME=VALUE")
            if holds_secret(flag) and not flag.startswith(ACCOUNTING):
                name = f"cluster.flags={flag.partition('=')[0]}=..."
                wrong = "looks like a secret, which would be readable in the job"
                raise UserError(name, wrong, "export it before you submit")
        if cluster.workers > 1 and not hasattr(config, "sweep"):
            wrong = "share the trials of a sweep, and this is none"
            raise UserError(f"cluster.workers={cluster.workers}", wrong, "leave it out")
    if isinstance(cluster, KubernetesCluster):
        _kubernetes(cluster)
    if isinstance(cluster, SkyPilotCluster):
        _skypilot(cluster)


def _remote(cluster: RemoteCluster) -> None:
    for name in (item.name for item in fields(cluster) if item.name in PLAIN_SETTINGS):
        value = getattr(cluster, name)
        for text in value if isinstance(value, list) else [value]:
            if text is not None and not PLAIN.fullmatch(text):
                wrong = "has a blank, a line break, or a sign that a job cannot carry there"
                raise UserError(f"cluster.{name}={text!r}", wrong, "leave it out")
    if cluster.name is not None and not NAME.fullmatch(cluster.name):
        raise UserError(
            f"cluster.name={cluster.name!r}",
            "is no name of a job",
            "give lower-case letters, digits and -, a letter first, 50 at the most",
        )
    for text in cluster.env:
        if not ENV.match(text):
            where = f"cluster.env={_without_value(text)}"
            raise UserError(where, "is no variable", "write it as NAME=VALUE")
        name, _, value = text.partition("=")
        if is_secret_name(name) or holds_secret(value):
            raise UserError(
                f"cluster.env={name}=...",
                "looks like a secret, which would be readable in the job",
                "export it before you submit (slurm), or name it in cluster.secrets (kubernetes, "
                "skypilot)",
            )


def _time(cluster: SlurmCluster) -> None:
    """Refuse a job that would be told to stop, and queued again, before it has done anything."""
    seconds = slurm_seconds(cluster.time) if cluster.time else None
    least = cluster.stop_seconds + SLURM_EARLY + LEAST_LIFE
    if seconds and seconds < least:  # 0 is Slurm's word for no limit
        raise UserError(
            f"cluster.time={cluster.time}",
            f"leaves no time to train: {cluster.stop_seconds} s before its end, or up to a minute "
            "earlier, Slurm tells the job to save",
            f"give {-(-least // 60)} minutes or more, or a smaller cluster.stop_seconds",
        )


def _sweep(cluster: RemoteCluster) -> None:
    if not isinstance(cluster, SlurmCluster):
        raise UserError(
            f"cluster={cluster.kind}",
            "takes no sweeps, whose workers meet in a folder of a shared disk",
            "choose cluster=slurm, or start its trials as jobs of their own",
        )
    if cluster.nodes > 1:
        raise UserError(
            f"cluster.nodes={cluster.nodes}",
            "is for one training, and each trial of a sweep runs on one machine",
            "give 1, and cluster.workers machines that share the trials",
        )


def _kubernetes(cluster: KubernetesCluster) -> None:
    # A pod's name is that of the JobSet, the job's, two numbers, and five letters of Kubernetes.
    pod = f"{cluster.name}-{JOBSET_PART}-0-{cluster.nodes - 1}-abcde"
    if cluster.jobset and cluster.name is not None and len(pod) > LONGEST_LABEL:
        raise UserError(
            f"cluster.name={cluster.name!r}",
            f"is too long for the pods of a JobSet by {len(pod) - LONGEST_LABEL}",
            "shorten it",
        )
    for name, texts in {"namespace": [cluster.namespace], "secrets": cluster.secrets}.items():
        for text in texts:
            if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", text):
                raise UserError(
                    f"cluster.{name}={_without_value(text)}",
                    "is no name in Kubernetes",
                    "give lower-case letters, digits and -",
                )
    for text in cluster.volumes:
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?:/.+", text):
            raise UserError(f"cluster.volumes={text}", "is no volume", "write it as CLAIM:/path")
    for text in cluster.selector:
        if not re.fullmatch(r"[^=]+=[^=]+", text):
            raise UserError(f"cluster.selector={text}", "is no label", "write it as KEY=VALUE")


def _skypilot(cluster: SkyPilotCluster) -> None:
    if cluster_gpus(cluster) and cluster.accelerator is None:
        wrong, remedy = "is missing", "give a kind of GPU, as H100, or cluster.gpus=0"
        raise UserError("cluster.accelerator", wrong, remedy)
    if cluster.memory is not None and sky_memory(cluster.memory) is None:
        raise UserError(f"cluster.memory={cluster.memory}", "is no amount", "write it as 200G")
    if cluster.name is not None and "---" in cluster.name:
        wrong = "is no name of a job of SkyPilot"
        raise UserError(f"cluster.name={cluster.name!r}", wrong, "give no more than two - in a row")
    for text in cluster.secrets:
        if not ENV.fullmatch(f"{text}="):
            wrong, remedy = "is no name of a variable", "give names alone, as WANDB_API_KEY"
            raise UserError(f"cluster.secrets={_without_value(text)}", wrong, remedy)


def _without_value(text: str) -> str:
    """What may be shown of something that should have been a name: it may say a secret."""
    name, sign, _ = text.partition("=")
    return f"{name!r}{sign and '=...'}"
