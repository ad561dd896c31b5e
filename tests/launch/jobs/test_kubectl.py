"""What a real kubectl says where it knows no cluster, and where nobody answers."""

import os
from pathlib import Path

import pytest
import yaml

from launch.cli import run
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
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "clusters": [{"name": "lab", "cluster": {"server": server}}],
        "users": [{"name": "lab", "user": {}}],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    assert run(["status", "job=kubernetes:default/a"]) == 2
    shown = capsys.readouterr().err
    said = "ldm: job=kubernetes:default/a: kubectl refuses: The connection to the server 127.0.0.1:"
    assert shown.startswith(said) and shown.count("\n") == 1
