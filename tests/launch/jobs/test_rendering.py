"""What a job shows of itself has all that its settings ask for, and showing it submits nothing."""

import shlex
from pathlib import Path

import pytest
import yaml

from conf.clusters import KubernetesCluster, SkyPilotCluster, SlurmCluster
from launch.cli import run
from launch.jobs.kubernetes import kubernetes_manifest
from launch.jobs.skypilot import skypilot_task
from launch.jobs.slurm import slurm_script

SCHEDULERS = ("sbatch", "kubectl", "sky")
IMAGE = f"cluster.image=registry/ldm@sha256:{'0' * 64}"
SMALL = ("autoencoder=taesd", "text_encoder=classes")
COMMANDS = [
    ["shard", "source=folder", "source.path=s3://b/pictures", "out=s3://b/images"],
    ["cache", "data.url=s3://b/images", "out=s3://b/latents", *SMALL],
    ["autoencoder", "data.url=s3://b/images", "out=s3://b/autoencoder", "train.samples=8"],
    ["train", "data.url=s3://b/latents", "out=s3://b/run", "train.samples=8", "engine=ddp"],
    ["sample", "checkpoint=s3://b/run", "prompts=['a cat']", "out=s3://b/pictures"],
    ["evaluate", "checkpoint=s3://b/run", "data.url=s3://b/latents", "out=s3://b/scores"],
]
PLACES = {
    "slurm": ("cluster=slurm",),
    "kubernetes": ("cluster=kubernetes", IMAGE),
    "skypilot": ("cluster=skypilot", IMAGE, "cluster.gpus=0"),
}
NETWORK = {
    "NCCL_SOCKET_IFNAME": "eth0",
    "GLOO_SOCKET_IFNAME": "eth0",
    "FI_PROVIDER": "efa",
    "FI_EFA_USE_DEVICE_RDMA": "1",
    "NCCL_DEBUG": "WARN",
}
WAYS = {"interface": "eth0", "efa": True, "env": ["NCCL_DEBUG=WARN"]}


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once a scheduler's program was called; each of them is a recorder."""
    for name in SCHEDULERS:
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "$0" "$@" >> {tmp_path}/called\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "called"


def arguments_of(kind: str, shown: str) -> list[str]:
    """What a job gives `ldm`."""
    if kind == "slurm":
        (line,) = (line for line in shown.splitlines() if line.startswith("srun "))
        words = shlex.split(line.removesuffix(" &"))
        return words[words.index("launch.cli") + 1 :]
    job, *_ = yaml.safe_load_all(shown)
    if kind == "skypilot":
        return shlex.split(job["run"])[2:]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return [one.replace("$$", "$") for one in container["args"]]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_every_command_is_shown_as_a_job_of_each_scheduler_and_none_is_called(
    words: list[str], called: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, place in PLACES.items():
        assert run([*words, *place, "cluster.render=true"]) == 0, capsys.readouterr().err
        assert arguments_of(kind, capsys.readouterr().out) == [*words, *place]
    assert not called.exists()


def test_without_that_they_are_called(
    called: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Or the test above would say nothing."""
    monkeypatch.chdir(tmp_path)
    for place in PLACES.values():
        run([*COMMANDS[3], *place])
    asked = {Path(line.split()[0]).name for line in called.read_text().splitlines()}
    assert asked == set(SCHEDULERS)


def options(cluster: SlurmCluster) -> dict[str, str]:
    """Those of sbatch in a script, by name; one without a value has an empty one."""
    lines = slurm_script("name", ["train"], "", cluster).splitlines()
    told = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH ")]
    return {name: value for name, _, value in (one.partition("=") for one in told)}


def test_slurm_is_asked_for_what_the_settings_say() -> None:
    cluster = SlurmCluster(
        name="name",
        nodes=4,
        processes=8,
        cpus=96,
        memory="900G",
        partition="gpu",
        account="lab",
        constraint="h100&ib",
        time="1-12:00:00",
        stop_seconds=600,
        logs="here",
        flags=["--qos=high", "--exclusive"],
    )
    assert options(cluster) == {
        "job-name": "name",
        "nodes": "4",
        "ntasks-per-node": "1",
        "cpus-per-task": "96",
        "mem": "900G",
        "gpus-per-node": "8",
        "partition": "gpu",
        "account": "lab",
        "constraint": "h100&ib",
        "time": "1-12:00:00",
        "output": "here/%x-%j.log",
        "open-mode": "append",
        "signal": "B:USR1@600",
        "requeue": "",
        "qos": "high",
        "exclusive": "",
    }


def test_slurm_is_asked_for_nothing_else() -> None:
    assert set(options(SlurmCluster(gpus=0))) == {
        *("job-name", "nodes", "ntasks-per-node", "output", "dependency", "open-mode"),
        *("signal", "requeue"),
    }
    assert options(SlurmCluster(gpus=2))["gpus-per-node"] == "2"


def test_a_container_runs_its_own_program() -> None:
    mounts = ["/data:/data", "/scratch:/tmp"]
    cluster = SlurmCluster(container="registry/ldm@sha256:12", container_mounts=mounts, cpus=8)
    script = slurm_script("name", ["train", "out=a"], "", cluster)
    (step,) = (line for line in script.splitlines() if line.startswith("srun "))
    assert shlex.split(step) == [
        *("srun", "--kill-on-bad-exit=0", "--wait=960", "--cpus-per-task=8"),
        *("--container-image=registry/ldm@sha256:12",),
        *("--container-mounts=/data:/data,/scratch:/tmp", "ldm", "train", "out=a", "&"),
    ]


def test_every_scheduler_tells_ranks_of_the_network() -> None:
    script = slurm_script("name", [], "", SlurmCluster(**WAYS))
    exports = [line.removeprefix("export ") for line in script.splitlines()]
    assert {f"{name}={value}" for name, value in NETWORK.items()} <= set(exports)
    job, *_ = yaml.safe_load_all(
        kubernetes_manifest("name", [], "", KubernetesCluster(image="image", **WAYS))
    )
    (container,) = job["spec"]["template"]["spec"]["containers"]
    told = {pair["name"]: pair["value"] for pair in container["env"]}
    assert told.items() >= NETWORK.items()
    assert container["resources"]["limits"]["vpc.amazonaws.com/efa"] == "1"
    task = yaml.safe_load(
        skypilot_task("name", [], "", SkyPilotCluster(image="image", gpus=0, **WAYS))
    )
    assert task["envs"].items() >= NETWORK.items()


def test_ranks_in_a_pod_have_the_shared_memory_that_is_asked_for() -> None:
    """Docker's own 64 MiB are too little for NCCL between GPUs."""
    cluster = KubernetesCluster(image="image", shm_gb=2.5)
    job, *_ = yaml.safe_load_all(kubernetes_manifest("name", [], "", cluster))
    pod = job["spec"]["template"]["spec"]
    (mount,) = (one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "shm")
    (volume,) = (one for one in pod["volumes"] if one["name"] == "shm")
    assert mount["mountPath"] == "/dev/shm"
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "2560Mi"}
