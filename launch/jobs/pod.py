"""A pod of a job in Kubernetes: what it runs, what it is told, what it may.

Pods fit the restricted profile of the Pod Security Standards. Secrets are named, never held.
"""

from typing import Any

from conf.clusters import KubernetesCluster, cluster_gpus
from launch.jobs.node import ADDRESS, variables


def literal(text: str) -> str:
    """What Kubernetes, which replaces `$(NAME)` in arguments and variables, makes `text` of."""
    return text.replace("$", "$$")


def pod(
    arguments: list[str], code: str, address: str, cluster: KubernetesCluster
) -> dict[str, Any]:
    """The specification of a pod.

    Args:
        arguments: Of `ldm`; each reaches it as it is here.
        code: What is known of the submitter's code, packed, or nothing.
        address: Of the first pod, where ranks meet.
        cluster: Where it runs.
    """
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
                "env": _environment(code, address, cluster),
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


def _environment(code: str, address: str, cluster: KubernetesCluster) -> list[dict[str, str]]:
    told = {**variables(cluster, code), ADDRESS: address}
    return [{"name": key, "value": literal(value)} for key, value in told.items()]


def _secrets(cluster: KubernetesCluster) -> dict[str, Any]:
    named = [{"secretRef": {"name": secret}} for secret in cluster.secrets]
    return {"envFrom": named} if named else {}


def _resources(cluster: KubernetesCluster) -> dict[str, Any]:
    limits: dict[str, str] = {}
    if cluster_gpus(cluster):
        limits[cluster.gpu_resource] = str(cluster_gpus(cluster))
    if cluster.efa:
        limits["vpc.amazonaws.com/efa"] = "1"
    if cluster.memory:
        limits["memory"] = cluster.memory
    requests = {**limits, **({"cpu": str(cluster.cpus)} if cluster.cpus else {})}
    return {"limits": limits, "requests": requests}
