"""Rules of where a job reads and writes: its machines do not see the paths of this one."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from conf.clusters import KubernetesCluster, RemoteCluster, SkyPilotCluster
from conf.encoders import CLASSES
from conf.errors import UserError

# Settings that say where something is, in whatever group. `prompts` may be a list of texts instead.
PLACES = ("out", "checkpoint", "url", "path", "also", "start_from", "prompts")
LISTS = ("also",)


def check_places(config: Any, cluster: RemoteCluster) -> None:
    """Check that a job's machines can reach what it reads and writes.

    Raises:
        UserError: The first place that they cannot; none in Slurm, whose machines share a disk.
    """
    for name, text in places(config):
        if isinstance(cluster, KubernetesCluster):
            _reachable(name, text, "an absolute path of a shared volume")
        elif isinstance(cluster, SkyPilotCluster) and name.endswith("path"):
            _reachable(name, text, "an absolute path in the image")
        elif isinstance(cluster, SkyPilotCluster):
            _remote(name, text)


def places(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every place that a configuration names: the setting's name, and a path or URL."""
    for item in fields(config):
        name, value = f"{prefix}{item.name}", getattr(config, item.name)
        for i, one in enumerate(value if isinstance(value, list) else [value]):
            if is_dataclass(one):
                yield from places(one, f"{name}[{i}]." if isinstance(value, list) else f"{name}.")
            elif item.name in PLACES and isinstance(one, str) and one:
                file = one.removeprefix(CLASSES)
                if (not isinstance(value, list) or item.name in LISTS) and not file.isdecimal():
                    yield name, file


def _remote(name: str, url: str) -> None:
    if "://" not in url or url.startswith("file://"):
        raise UserError(
            f"{name}={url}",
            "is a path, and SkyPilot's machines are new ones without your disks",
            "give a URL, as s3://bucket/prefix",
        )


def _reachable(name: str, url: str, other: str) -> None:
    """Refuse what would lie in a machine that is thrown away."""
    if "://" not in url and not url.startswith("/"):
        raise UserError(
            f"{name}={url}",
            "is a path of this machine, which the job's machines do not see",
            f"give a URL, as s3://bucket/prefix, or {other}",
        )
