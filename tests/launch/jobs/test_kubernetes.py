"""A job's objects fit Kubernetes' own schemas, and the restricted Pod Security Standard."""

import re
from dataclasses import replace

import kubernetes_validate
import pytest
import yaml

from conf.clusters import KubernetesCluster
from launch.jobs.kubernetes import kubernetes_manifest

CLUSTER = KubernetesCluster(
    image="registry/ldm@sha256:12",
    nodes=4,
    processes=8,
    memory="900G",
    cpus=96,
    efa=True,
    interface="eth0",
    secrets=["store", "wandb"],
    volumes=["data:/data"],
    selector=["gpu=h100"],
)
PLAIN = KubernetesCluster(image="image", gpus=0)
SET = replace(CLUSTER, jobset=True)
VERSIONS = ("1.31", "1.34", "1.37")


def objects(cluster: KubernetesCluster) -> dict[str, dict]:
    manifest = kubernetes_manifest("ldm-train", ["train", "out=a"], "{}", cluster)
    return {document["kind"]: document for document in yaml.safe_load_all(manifest)}


def job_in(jobset: dict) -> dict:
    """The job that the controller makes of the first part of a JobSet."""
    (part,) = jobset["spec"]["replicatedJobs"]
    name = f"{jobset['metadata']['name']}-{part['name']}-0"
    labels = part["template"]["metadata"]
    meta = {"name": name, "namespace": jobset["metadata"]["namespace"], **labels}
    spec = part["template"]["spec"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cluster", [CLUSTER, PLAIN], ids=["full", "plain"])
def test_every_object_fits_the_schema(version: str, cluster: KubernetesCluster) -> None:
    found = objects(cluster)
    assert set(found) == {"Service", "NetworkPolicy", "Job"}
    for document in found.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_a_wrong_field_does_not_fit() -> None:
    job = objects(CLUSTER)["Job"]
    job["spec"]["completionsMode"] = "Indexed"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[0], strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_objects_of_a_jobset_fit_the_schemas(version: str) -> None:
    found = objects(SET)
    assert set(found) == {"NetworkPolicy", "JobSet"}  # whose controller makes the service
    kubernetes_validate.validate(found["NetworkPolicy"], version, strict=True)
    kubernetes_validate.validate(job_in(found["JobSet"]), version, strict=True)


def test_a_jobset_has_the_fields_of_its_api() -> None:
    """Those of jobset.x-k8s.io/v1alpha2, whose schema is in no package."""
    found = objects(SET)["JobSet"]
    assert set(found) == {"apiVersion", "kind", "metadata", "spec"}
    assert found["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    spec = found["spec"]
    assert set(spec) == {"network", "failurePolicy", "replicatedJobs"}
    assert spec["network"] == {"enableDNSHostnames": True, "subdomain": "ldm-train"}
    assert set(spec["failurePolicy"]) == {"maxRestarts", "rules"}
    assert spec["failurePolicy"]["maxRestarts"] == SET.retries
    (rule,) = spec["failurePolicy"]["rules"]
    assert set(rule) == {"name", "action", "onJobFailureReasons"}
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    (part,) = spec["replicatedJobs"]
    assert set(part) == {"name", "replicas", "template"}
    assert set(part["template"]) == {"metadata", "spec"}


def test_in_a_jobset_a_mistake_fails_all_and_any_other_failure_starts_all_again() -> None:
    found = objects(SET)["JobSet"]
    (rule,) = found["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    spec = job_in(found)["spec"]
    assert spec["backoffLimit"] == 0
    rules = spec["podFailurePolicy"]["rules"]
    told = [(rule["onExitCodes"]["values"], rule["action"]) for rule in rules]
    assert told == [([2], "FailJob"), ([75], "Ignore")]


def test_in_a_jobset_ranks_meet_where_its_controller_names_the_first_pod() -> None:
    jobset = objects(SET)["JobSet"]
    job = job_in(jobset)
    pod = job["spec"]["template"]["spec"]
    told = {pair["name"]: pair["value"] for pair in pod["containers"][0]["env"]}
    subdomain = jobset["spec"]["network"]["subdomain"]
    assert told["LDM_ADDRESS"] == f"{job['metadata']['name']}-0.{subdomain}"
    assert "subdomain" not in pod
    assert job["spec"]["template"]["metadata"]["labels"] == job["metadata"]["labels"]


@pytest.mark.parametrize("cluster", [CLUSTER, SET], ids=["job", "jobset"])
def test_the_pod_fits_the_restricted_profile(cluster: KubernetesCluster) -> None:
    found = objects(cluster)
    pod = (found.get("Job") or job_in(found["JobSet"]))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        assert name not in pod
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"emptyDir", "persistentVolumeClaim"}


def test_the_record_of_a_job_names_its_image_and_its_submitters_code() -> None:
    (container,) = objects(CLUSTER)["Job"]["spec"]["template"]["spec"]["containers"]
    told = {pair["name"]: pair["value"] for pair in container["env"]}
    assert (told["LDM_IMAGE"], told["LDM_CODE"]) == (CLUSTER.image, "{}")


def test_secrets_are_named_and_never_held() -> None:
    (container,) = objects(CLUSTER)["Job"]["spec"]["template"]["spec"]["containers"]
    named = [{"secretRef": {"name": name}} for name in ("store", "wandb")]
    assert container["envFrom"] == named


def test_ranks_meet_at_the_first_pod_and_nobody_else_comes_in() -> None:
    found = objects(CLUSTER)
    pod = found["Job"]["spec"]["template"]["spec"]
    told = {pair["name"]: pair["value"] for pair in pod["containers"][0]["env"]}
    assert told["LDM_ADDRESS"] == "ldm-train-0.ldm-train"
    assert pod["subdomain"] == found["Service"]["metadata"]["name"]
    labels = found["Job"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"] == labels
    rule = {"podSelector": {"matchLabels": labels}}
    assert found["NetworkPolicy"]["spec"]["ingress"] == [{"from": [rule]}]


def test_exit_codes_decide_whether_a_pod_is_started_again() -> None:
    rules = objects(CLUSTER)["Job"]["spec"]["podFailurePolicy"]["rules"]
    actions = {
        rule["onExitCodes"]["values"][0]: rule["action"] for rule in rules if "onExitCodes" in rule
    }
    assert actions == {2: "FailJob", 75: "Ignore"}
