"""Jobs made, shown and removed by a real kubectl, and what it says where there is no cluster."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from launch.cli import run
from tests.helpers.kubernetes import Cluster, kubectl_config, kubernetes_api
from tests.helpers.processes import free_ports, installed_script

TRAIN = ["train", "data.url=s3://b/latents", "out=s3://b/run", "train.samples=8"]
IMAGE = f"registry/ldm@sha256:{'0' * 64}"
COMMANDS = [
    [*TRAIN, "cluster=kubernetes", f"cluster.image={IMAGE}"],
    [*TRAIN, "cluster=kubernetes", f"cluster.image={IMAGE}", "cluster.jobset=true"],
    ["status", "job=kubernetes:default/a"],
    ["logs", "job=jobset:default/a"],
    ["stop", "job=jobset:default/a"],
]
KINDS = ["kubernetes", "jobset"]
OTHERS = {"kubernetes": {"services", "networkpolicies"}, "jobset": {"networkpolicies"}}


@pytest.fixture(autouse=True)
def kubectl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one that was installed with the tests, with no settings of its user."""
    bin_folder = Path(installed_script("kubectl")).parent
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_no_context_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    shown = capsys.readouterr().err
    assert "kubectl has no context, so it knows no cluster" in shown
    assert shown.count("\n") == 1


def test_a_server_that_does_not_answer_is_one_line_without_kubectls_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = f"http://127.0.0.1:{free_ports(1)[0]}"
    (tmp_path / "config").write_text(yaml.safe_dump(kubectl_config(server)))
    assert run(["status", "job=kubernetes:default/a"]) == 2
    shown = capsys.readouterr().err
    said = "ldm: job=kubernetes:default/a: kubectl refuses: The connection to the server 127.0.0.1:"
    assert shown.startswith(said) and shown.count("\n") == 1


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with kubernetes_api(tmp_path / "config") as cluster:
        yield cluster


def job_of(kind: str) -> list[str]:
    told = [f"cluster.image={IMAGE}", "cluster.namespace=lab", "cluster.name=it"]
    return [*TRAIN, "cluster=kubernetes", *told, f"cluster.jobset={kind == 'jobset'}"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_has_an_id_that_tells_of_it_and_its_log(
    kind: str, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    job = f"job={kind}:lab/it"
    assert run(job_of(kind)) == 0
    assert capsys.readouterr().out.startswith(f"{kind}:lab/it  (ldm status {job}; ldm logs {job}; ")
    assert run(["logs", job]) == 0  # before its pods say anything
    assert capsys.readouterr() == ("", "")
    cluster.add_pod("it", "a line\n")
    assert run(["logs", job, "lines=7"]) == 0
    assert capsys.readouterr().out == "[pod/it-0/ldm] a line\n"
    assert run(["status", job]) == 0
    shown = capsys.readouterr().out
    assert "pod/it-0" in shown and "/it " in shown


@pytest.mark.parametrize("kind", KINDS)
def test_what_belongs_to_a_job_is_made_after_it_and_is_its_own(kind: str, cluster: Cluster) -> None:
    assert run(job_of(kind)) == 0
    (what, _), *others = cluster.objects
    assert what == {"kubernetes": "jobs", "jobset": "jobsets"}[kind]
    assert {what for what, _ in others} == OTHERS[kind]
    job = cluster.objects[what, "it"]
    wanted = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": "it"}
    for other in others:
        (owner,) = cluster.objects[other]["metadata"]["ownerReferences"]
        assert owner == {**wanted, "uid": job["metadata"]["uid"]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_of_a_job_that_is_stopped_is_free_when_its_pods_have_gone(
    kind: str, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two jobs of one name would write one run."""
    job = f"{kind}:lab/it"
    assert run(job_of(kind)) == 0
    cluster.add_pod("it", "")
    assert run(["stop", f"job={job}"]) == 0
    assert 'it" deleted' in capsys.readouterr().out
    assert {what for what, _ in cluster.objects} > OTHERS[kind]  # the wall stands to the end
    before = dict(cluster.objects)
    assert run(job_of(kind)) == 2
    assert cluster.objects == before
    assert capsys.readouterr().err == (
        "ldm: cluster=kubernetes: a job it is there: it goes on, has ended, or is just ending; "
        f"`ldm status job={job}` tells which, `ldm stop job={job}` ends and removes it\n"
    )
    cluster.pods_end()
    assert not cluster.objects
    assert run(job_of(kind)) == 0


def test_what_a_job_of_that_name_has_left_is_taken_over(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(job_of("kubernetes")) == 0
    assert capsys.readouterr().err == ""
    del cluster.objects["jobs", "it"]
    assert run([*job_of("kubernetes"), "cluster.image=registry/ldm:1"]) == 0
    assert capsys.readouterr().err.startswith("registry/ldm:1 has no digest, so another image may")
    uid = cluster.objects["jobs", "it"]["metadata"]["uid"]
    for what in OTHERS["kubernetes"]:
        (owner,) = cluster.objects[what, "it"]["metadata"]["ownerReferences"]
        assert owner["uid"] == uid


@pytest.mark.parametrize("refused", ["jobs", "services", "networkpolicies"])
def test_what_is_refused_does_not_run(
    refused: str, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.refused = {refused}
    assert run(job_of("kubernetes")) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert f'{refused} "it" is forbidden: exceeded quota' in shown.err
    cluster.pods_end()
    assert not cluster.objects


@pytest.mark.parametrize("command", ["status", "logs", "stop"])
def test_a_job_that_is_not_there_is_one_line(
    command: str, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "job=kubernetes:lab/it"]) == 2
    said = "ldm: job=kubernetes:lab/it: Kubernetes knows no such job; look at `kubectl get jobs`\n"
    assert capsys.readouterr().err == said
