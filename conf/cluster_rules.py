"""Rules of the settings of jobs: what a job could not carry, or should not, is refused here."""

import re
from dataclasses import fields
from typing import Any

from conf.clusters import (
    KubernetesCluster,
    RemoteCluster,
    SlurmCluster,
    cluster_nodes,
)
from conf.errors import UserError
from conf.groups import ClusterConfig

KINDS = ("local", "slurm", "kubernetes")
NAME = re.compile(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?")
ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
# Neither sbatch nor a shell, nor the splitting of lists and pairs, takes any of these as special.
PLAIN = re.compile(r"[A-Za-z0-9_.,:/@%+=&|()\[\]*-]+")
PLAIN_SETTINGS = (
    *("memory", "interface", "partition", "account", "constraint", "time", "container"),
    *("container_mounts", "address", "logs", "flags", "image", "volumes", "selector"),
    "gpu_resource",
)
URLS = ("out", "checkpoint")


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
    if isinstance(cluster, SlurmCluster):
        for flag in cluster.flags:
            if not flag.startswith("--"):
                raise UserError(f"cluster.flags={flag}", "is no flag", "write it as --NAME=VALUE")
    if isinstance(cluster, KubernetesCluster):
        _kubernetes(cluster)
        for name in URLS:
            _reachable(name, getattr(config, name, ""))


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
            raise UserError(f"cluster.env={text!r}", "is no variable", "write it as NAME=VALUE")
        name = text.partition("=")[0]
        if SECRET.search(name):
            raise UserError(
                f"cluster.env={name}=...",
                "looks like a secret, which would be readable in the job",
                "export it before you submit (slurm), or name it in cluster.secrets",
            )


def _kubernetes(cluster: KubernetesCluster) -> None:
    for name, texts in {"namespace": [cluster.namespace], "secrets": cluster.secrets}.items():
        for text in texts:
            if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", text):
                raise UserError(
                    f"cluster.{name}={text!r}",
                    "is no name in Kubernetes",
                    "give lower-case letters, digits and -",
                )
    for text in cluster.volumes:
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?:/.+", text):
            raise UserError(f"cluster.volumes={text}", "is no volume", "write it as CLAIM:/path")
    for text in cluster.selector:
        if not re.fullmatch(r"[^=]+=[^=]+", text):
            raise UserError(f"cluster.selector={text}", "is no label", "write it as KEY=VALUE")


def _reachable(name: str, url: Any) -> None:
    """Refuse what would lie in a machine that is thrown away."""
    if isinstance(url, str) and url and "://" not in url and not url.startswith("/"):
        raise UserError(
            f"{name}={url}",
            "is a path of this machine, which the job's machines do not see",
            "give a URL, as s3://bucket/prefix, or an absolute path of a shared volume",
        )
