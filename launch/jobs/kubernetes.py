"""Jobs of Kubernetes: an Indexed Job, a name for its first machine, and a wall around it.

Pods fit the restricted profile of the Pod Security Standards. Secrets are named, never held.
"""

from typing import Any

import yaml

from conf.clusters import KubernetesCluster
from launch.jobs.node import ADDRESS, gpus_of, variables
from launch.local import PREEMPTED_EXIT_CODE

USER_MISTAKE_EXIT_CODE = 2
LABEL = "app.kubernetes.io/name"


def kubernetes_manifest(name: str, arguments: list[str], cluster: KubernetesCluster) -> str:
    """The objects of a job, as YAML documents.

    Args:
        name: Of all of them.
        arguments: Of `ldm`; each reaches it as it is here.
        cluster: Where it runs.
    """
    documents = [
        _service(name, cluster),
        _policy(name, cluster),
        _job(name, arguments, cluster),
    ]
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=1_000_000)


def literal(text: str) -> str:
    """What Kubernetes, which replaces `$(NAME)` in arguments and variables, makes `text` of."""
    return text.replace("$", "$$")


def _meta(name: str, cluster: KubernetesCluster) -> dict[str, Any]:
    return {"name": name, "namespace": cluster.namespace, "labels": {LABEL: name}}


def _service(name: str, cluster: KubernetesCluster) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(name, cluster),
        "spec": {
            "clusterIP": "None",
            "selector": {LABEL: name},
            "publishNotReadyAddresses": True,  # ranks meet before any is ready
        },
    }


def _policy(name: str, cluster: KubernetesCluster) -> dict[str, Any]:
    """Nobody but the job's own pods may connect: NCCL and gloo take ports as they come, so all."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _meta(name, cluster),
        "spec": {
            "podSelector": {"matchLabels": {LABEL: name}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {LABEL: name}}}]}],
        },
    }


def _job(name: str, arguments: list[str], cluster: KubernetesCluster) -> dict[str, Any]:
    exits = {"containerName": "ldm", "operator": "In"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _meta(name, cluster),
        "spec": {
            "completionMode": "Indexed",
            "completions": cluster.nodes,
            "parallelism": cluster.nodes,
            "backoffLimit": cluster.retries,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",  # another start would find the same mistake
                        "onExitCodes": {**exits, "values": [USER_MISTAKE_EXIT_CODE]},
                    },
                    {
                        "action": "Ignore",  # saved; started again, and no failure
                        "onExitCodes": {**exits, "values": [PREEMPTED_EXIT_CODE]},
                    },
                    {
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                ]
            },
            "template": {
                "metadata": {"labels": {LABEL: name}},
                "spec": _pod(name, arguments, cluster),
            },
        },
    }


def _pod(name: str, arguments: list[str], cluster: KubernetesCluster) -> dict[str, Any]:
    claims = [text.partition(":") for text in cluster.volumes]
    volumes: list[dict[str, Any]] = [
        {
            "name": "shm",
            "emptyDir": {"medium": "Memory", "sizeLimit": f"{int(cluster.shm_gb * 1024)}Mi"},
        },
        *(
            {"name": f"claim-{i}", "persistentVolumeClaim": {"claimName": claim}}
            for i, (claim, _, _) in enumerate(claims)
        ),
    ]
    mounts = [
        {"name": "shm", "mountPath": "/dev/shm"},
        *({"name": f"claim-{i}", "mountPath": path} for i, (_, _, path) in enumerate(claims)),
    ]
    selector = dict(text.split("=", 1) for text in cluster.selector)
    return {
        "restartPolicy": "Never",
        "subdomain": name,  # the job's pods are NAME-0, NAME-1, ... in it
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": cluster.grace_seconds,
        **({"nodeSelector": selector} if selector else {}),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": cluster.user,
            "runAsGroup": cluster.user,
            "fsGroup": cluster.user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "ldm",
                "image": cluster.image,
                "command": ["ldm"],
                "args": [literal(one) for one in arguments],
                "env": _environment(name, cluster),
                **_secrets(cluster),
                "resources": _resources(cluster),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }


def _environment(name: str, cluster: KubernetesCluster) -> list[dict[str, str]]:
    told = {**variables(cluster), ADDRESS: f"{name}-0.{name}"}
    return [{"name": key, "value": literal(value)} for key, value in told.items()]


def _secrets(cluster: KubernetesCluster) -> dict[str, Any]:
    named = [{"secretRef": {"name": secret}} for secret in cluster.secrets]
    return {"envFrom": named} if named else {}


def _resources(cluster: KubernetesCluster) -> dict[str, Any]:
    limits: dict[str, str] = {}
    if gpus_of(cluster):
        limits[cluster.gpu_resource] = str(gpus_of(cluster))
    if cluster.efa:
        limits["vpc.amazonaws.com/efa"] = "1"
    if cluster.memory:
        limits["memory"] = cluster.memory
    requests = {**limits, **({"cpu": str(cluster.cpus)} if cluster.cpus else {})}
    return {"limits": limits, "requests": requests}
