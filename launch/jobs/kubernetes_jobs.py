"""Jobs in Kubernetes: making one, and what has become of it.

The job's object is the lock on its name: it is made first and alone, and it stays until the last
of its pods has gone. All other objects belong to it, and go with it.
"""

from typing import Any

import yaml

from conf.clusters import KubernetesCluster
from conf.errors import UserError
from launch.jobs.kubernetes import JOBSETS, LABEL
from launch.jobs.tools import ToolRefused, run_kubectl

RESOURCES = {"kubernetes": "jobs", "jobset": f"jobsets.{JOBSETS}"}
SETTING = "cluster=kubernetes"


def submit_kubernetes(name: str, manifest: str, cluster: KubernetesCluster) -> str:
    """Make the objects of a job; the job's id.

    Args:
        name: Of all of them.
        manifest: The job, and what belongs to it, as YAML documents.
        cluster: Where it runs.

    Raises:
        UserError: A job of that name is there, or Kubernetes refuses; then nothing is left of it,
            or the error says so.
    """
    kind = "jobset" if cluster.jobset else "kubernetes"
    job = f"{kind}:{cluster.namespace}/{name}"
    if cluster.jobset and not _knows_jobsets():
        raise UserError(
            "cluster.jobset=true", "this Kubernetes knows no JobSets", "install its controller"
        )
    here = f"--namespace={cluster.namespace}"
    lock, *others = yaml.safe_load_all(manifest)
    uid = _create(job, here, lock)
    # Applied, not created: those of a job that has just gone may still be there.
    apply = ("apply", "--server-side", "--force-conflicts", "-f", "-")
    owned = yaml.safe_dump_all(_owned(other, lock, uid) for other in others)
    try:
        run_kubectl(SETTING, here, *apply, given=owned)
    except UserError as error:
        _take_back(job, here, _removing(kind, name), error)
        raise
    return job


def _create(job: str, here: str, lock: dict[str, Any]) -> str:
    """Make the job's own object; what it has got for an identity."""
    uid = "--output=jsonpath={.metadata.uid}"
    try:
        return run_kubectl(SETTING, here, "create", "-f", "-", uid, given=yaml.safe_dump(lock))
    except ToolRefused as error:
        if "AlreadyExists" not in error.wrong:
            raise
    raise UserError(
        SETTING,
        f"a job {lock['metadata']['name']} is there: it goes on, has ended, or is just ending",
        f"`ldm status job={job}` tells which, `ldm stop job={job}` ends and removes it",
    )


def _owned(thing: dict[str, Any], job: dict[str, Any], uid: str) -> dict[str, Any]:
    """An object that goes when the job has gone, and not before its pods."""
    owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "uid": uid}
    references = [{**owner, "name": job["metadata"]["name"]}]
    return {**thing, "metadata": {**thing["metadata"], "ownerReferences": references}}


def _take_back(job: str, here: str, removing: tuple[str, ...], error: UserError) -> None:
    """Remove a job whose other objects were refused."""
    try:
        run_kubectl(SETTING, here, "delete", *removing)
    except UserError as another:
        raise UserError(
            SETTING,
            f"{error.wrong}; the job was made, and cannot be removed ({another.wrong})",
            f"`ldm stop job={job}`",
        ) from None


def _removing(kind: str, name: str) -> tuple[str, ...]:
    """What `kubectl delete` shall do: the job's object goes last, after its pods."""
    return ("--wait=false", "--cascade=foreground", f"{RESOURCES[kind]}/{name}")


def _knows_jobsets() -> bool:
    return bool(run_kubectl(SETTING, "api-resources", f"--api-group={JOBSETS}", "--output=name"))


def kubernetes_status(setting: str, kind: str, namespace: str, name: str) -> None:
    """Print the job and its pods, as kubectl shows them.

    Args:
        setting: The job as the user would type it.
        kind: Of job, `kubernetes` or `jobset`.
        namespace: Where it is.
        name: There.

    Raises:
        UserError: There is no such job, or kubectl refuses.
    """
    what = ",".join(dict.fromkeys([RESOURCES[kind], "jobs", "pods"]))
    label = f"--selector={LABEL}={name}"
    print(_known(setting, namespace, "get", what, label, "--output=wide"), end="")


def kubernetes_logs(setting: str, kind: str, namespace: str, name: str, lines: int) -> None:
    """Print the end of each pod's log; nothing if none has said anything yet.

    Raises:
        UserError: There is no such job, a pod has not begun, or kubectl refuses.
    """
    job = f"{RESOURCES[kind]}/{name}"
    _known(setting, namespace, "get", job, "--output=name", "--ignore-not-found")
    many = ("--prefix", "--max-log-requests=1000", f"--tail={lines}")
    label = f"--selector={LABEL}={name}"
    print(run_kubectl(setting, f"--namespace={namespace}", "logs", label, *many), end="")


def kubernetes_stop(setting: str, kind: str, namespace: str, name: str) -> None:
    """Have a job's pods told at once; they have cluster.grace_seconds to save.

    Its name is free when the last of them has gone.

    Raises:
        UserError: There is no such job, or kubectl refuses.
    """
    removing = ("--ignore-not-found", *_removing(kind, name))
    print(_known(setting, namespace, "delete", *removing), end="")


def _known(setting: str, namespace: str, *arguments: str) -> str:
    """What kubectl says of a job; it says nothing of what is not there."""
    told = run_kubectl(setting, f"--namespace={namespace}", *arguments)
    if not told.strip():
        raise UserError(setting, "Kubernetes knows no such job", "look at `kubectl get jobs`")
    return told
