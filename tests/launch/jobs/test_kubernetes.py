"""A job's objects fit Kubernetes' own schemas, and the restricted Pod Security Standard."""

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
VERSIONS = ("1.31", "1.34", "1.37")


def objects(cluster: KubernetesCluster) -> dict[str, dict]:
    documents = yaml.safe_load_all(kubernetes_manifest("ldm-train", ["train", "out=a"], cluster))
    return {document["kind"]: document for document in documents}


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


def test_the_pod_fits_the_restricted_profile() -> None:
    pod = objects(CLUSTER)["Job"]["spec"]["template"]["spec"]
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
