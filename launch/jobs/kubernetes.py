"""Jobs of Kubernetes: an Indexed Job, alone or in a JobSet, and a wall around its pods."""

from typing import Any

import yaml

from conf.clusters import JOBSET_PART, KubernetesCluster
from conf.errors import Preempted, UserError
from launch.jobs.pod import pod

LABEL = "app.kubernetes.io/name"
JOBSETS = "jobset.x-k8s.io"


def kubernetes_manifest(
    name: str, arguments: list[str], code: str, cluster: KubernetesCluster
) -> str:
    """The job, and what belongs to it, as YAML documents.

    Args:
        name: Of all of them.
        arguments: Of `ldm`; each reaches it as it is here.
        code: What is known of the submitter's code, packed, or nothing.
        cluster: Where it runs.
    """
    job = _jobset if cluster.jobset else _job
    # A JobSet makes the name by which its pods are found itself.
    service = [] if cluster.jobset else [_service(name, cluster)]
    documents = [job(name, arguments, code, cluster), *service, _policy(name, cluster)]
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=1_000_000)


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


def _job(name: str, arguments: list[str], code: str, cluster: KubernetesCluster) -> dict[str, Any]:
    disrupted = {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    # The job's pods are NAME-0, NAME-1, ... in the subdomain NAME.
    spec = {"subdomain": name, **pod(arguments, code, f"{name}-0.{name}", cluster)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _meta(name, cluster),
        "spec": _indexed(name, spec, cluster.retries, [disrupted], cluster.nodes),
    }


def _jobset(
    name: str, arguments: list[str], code: str, cluster: KubernetesCluster
) -> dict[str, Any]:
    """The same job in a set: when a pod fails, all of them are started again together."""
    first = f"{name}-{JOBSET_PART}-0-0.{name}"
    # No failure is left to the job itself: neither one of a pod nor a pod that was evicted.
    spec = _indexed(name, pod(arguments, code, first, cluster), 0, [], cluster.nodes)
    mistake = {
        "name": "mistake",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],  # the job's one rule that fails it
    }
    return {
        "apiVersion": f"{JOBSETS}/v1alpha2",
        "kind": "JobSet",
        "metadata": _meta(name, cluster),
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "failurePolicy": {"maxRestarts": cluster.retries, "rules": [mistake]},
            "replicatedJobs": [
                {
                    "name": JOBSET_PART,
                    "replicas": 1,
                    "template": {"metadata": {"labels": {LABEL: name}}, "spec": spec},
                }
            ],
        },
    }


def _indexed(
    name: str, spec: dict[str, Any], retries: int, rules: list[dict[str, Any]], nodes: int
) -> dict[str, Any]:
    exits = {"containerName": "ldm", "operator": "In"}
    return {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": retries,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",  # another start would find the same mistake
                    "onExitCodes": {**exits, "values": [UserError.exit_code]},
                },
                {
                    "action": "Ignore",  # saved; started again, and no failure
                    "onExitCodes": {**exits, "values": [Preempted.exit_code]},
                },
                *rules,
            ]
        },
        "template": {"metadata": {"labels": {LABEL: name}}, "spec": spec},
    }
