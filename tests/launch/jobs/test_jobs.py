"""Jobs that are shown, and what is refused in one line before anything is submitted."""

import random
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import run
from launch.jobs import submit
from launch.jobs.submit import job_name, place
from training.tracking.code import CodeState

TRAIN = ["train", "data.url=s3://b/latents", "out=s3://b/run", "train.samples=8", "engine=ddp"]
ENCODERS = ["autoencoder=taesd", "text_encoder=classes"]
KUBERNETES = ["cluster=kubernetes", "cluster.image=image"]
SKYPILOT = ["cluster=skypilot", "cluster.image=image"]
CACHE = ["cache", "data.url=s3://b/images", "out=s3://b/latents", *ENCODERS]
SAMPLE = ["sample", "checkpoint=s3://b/run", "out=s3://b/pictures"]
SHARD = ["shard", "source=folder", "out=s3://b/images"]
SWEEP = [
    *["train", "-m", *TRAIN[1:], "optimizer.lr=1e-3,1e-4", "validation.url=s3://b/held_out"],
    *["cluster=slurm", "cluster.cpus=4", "cluster.processes=2"],
]


def test_a_job_is_shown_without_torch_and_holds_nothing_that_shows_it() -> None:
    words = [*TRAIN, "cluster=slurm", "cluster.nodes=2", "cluster.render=true"]
    code = f"import sys; from launch.cli import run; run({words}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/usr/bin/env bash\n#SBATCH --job-name=ldm-train-")
    assert "render" not in done.stdout


def test_a_sweep_is_an_array_of_workers_on_their_own_machines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([*SWEEP, "cluster.workers=3", "cluster.render=true"]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --array=0-2\n" in script and "-%A_%a.log\n" in script
    assert "singleton" not in script
    (step,) = (line for line in script.splitlines() if line.startswith("srun "))
    words = shlex.split(step.removesuffix(" &"))
    here = [one for one in SWEEP[1:] if one not in ("cluster=slurm", "cluster.cpus=4")]
    assert words[words.index("launch.cli") + 1 :] == ["train", *here]


def test_no_two_jobs_of_one_name_run_at_a_time_if_the_name_is_not_the_users(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for more, waits in ([], True), (["cluster.name=mine"], False):
        assert run([*TRAIN, "cluster=slurm", "cluster.render=true", *more]) == 0
        assert ("#SBATCH --dependency=singleton\n" in capsys.readouterr().out) is waits


def test_a_trainings_name_is_that_of_its_run() -> None:
    name = job_name("train", TRAIN[1:], "s3://b/run")
    assert name == job_name("train", [*TRAIN[1:], "optimizer.lr=1"], "s3://b/run")
    assert name != job_name("train", TRAIN[1:], "s3://b/other")
    assert name != job_name("autoencoder", TRAIN[1:], "s3://b/run")
    for arguments in (["-m", *TRAIN[1:]], TRAIN[1:]):
        command = "train" if "-m" in arguments else "cache"
        assert job_name(command, arguments) != job_name(command, [*arguments, "cluster.cpus=1"])


def test_a_run_has_one_name_however_its_place_is_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    here = [
        "run",
        "run/",
        "./run",
        str(tmp_path / "run"),
        f"file://{tmp_path}/run",
        "~/run",
        "link",
    ]
    assert {place(one) for one in here} == {str(tmp_path / "run")}
    assert {place(one) for one in ("s3://b/run", "s3://b/run/")} == {"s3://b/run"}
    names = set()
    for out in ("s3://b/run/", "'s3://b/run'"):
        told = [one for one in TRAIN if not one.startswith("out=")]
        assert run([*told, f"out={out}", "cluster=slurm", "cluster.render=true"]) == 0
        names.add(capsys.readouterr().out.splitlines()[1])
    assert len(names) == 1


def test_a_folder_of_logs_that_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").write_text("a file")
    assert run([*TRAIN, "cluster=slurm"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("ldm: cluster.logs=logs: is no folder, and cannot be made one (")
    assert shown.count("\n") == 1


def test_changes_that_no_job_can_carry_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = CodeState("12", "34", random.Random(0).randbytes(200_000).hex())
    monkeypatch.setattr(submit, "code_state", lambda: changes)
    assert run([*TRAIN, "cluster=slurm", "cluster.render=true"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("ldm: cluster=slurm: the code's changes since its last commit are")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("digest", ["", "@sha256:12"])
def test_an_image_that_may_become_another_one_is_told_of(
    digest: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\ncat > /dev/null; echo 7\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    assert run([*TRAIN, "cluster=slurm", f"cluster.container=registry/ldm:1{digest}"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("slurm:7 ")
    assert ("registry/ldm:1 has no digest" in shown.err) is (not digest)
    assert shown.err.count("\n") == (not digest)


# Just time enough. URLs, volumes, packages, lists of classes, and prompts as they are.
@pytest.mark.parametrize(
    "words",
    [
        [*TRAIN, "cluster=slurm", "cluster.time=7"],
        [*TRAIN, "cluster=slurm", "cluster.time=0", "cluster.flags=['--wckey=a']"],
        [*TRAIN, *KUBERNETES, "data.url=/disk/latents"],
        [*CACHE, *KUBERNETES, "text_encoder=minilm"],
        [*CACHE, *KUBERNETES],
        [*SAMPLE, *KUBERNETES, "prompts=[cat]"],
        [*CACHE, *SKYPILOT, "cluster.gpus=0", "text_encoder.path=/models/clip"],
    ],
)
def test_what_a_job_can_be_is_taken(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "cluster.render=true"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*TRAIN, "cluster=slurm"], "there is no sbatch on this machine"),
        ([*TRAIN, *KUBERNETES], "there is no kubectl on this machine"),
        (["status", "job=slurm:1"], "there is no scontrol on this machine"),
        (["logs", "job=kubernetes:a/b"], "there is no kubectl on this machine"),
    ],
)
def test_a_missing_program_is_one_line(
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert run(words) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        ([*TRAIN, "cluster=slurm", "cluster.name='a b'"], "cluster.name="),
        ([*TRAIN, "cluster=slurm", "cluster.partition='a b'"], "cluster.partition="),
        (
            [*TRAIN, "cluster=slurm", "cluster.env=['WANDB_API_KEY=abc']"],
            "cluster.env=WANDB_API_KEY",
        ),
        ([*TRAIN, "cluster=slurm", "cluster.env=[nothing]"], "cluster.env="),
        ([*TRAIN, "cluster=slurm", "cluster.flags=[qos]"], "cluster.flags=qos"),
        ([*TRAIN, "cluster=slurm", "cluster.time=6:59"], "cluster.time=6:59"),
        ([*TRAIN, "cluster=slurm", "cluster.nodes=3"], "batch_size=256"),
        ([*TRAIN, *KUBERNETES, "cluster.volumes=[data]"], "cluster.volumes=data"),
        ([*TRAIN, *KUBERNETES, "cluster.selector=[data]"], "cluster.selector=data"),
        ([*TRAIN, *KUBERNETES, "cluster.namespace=A"], "cluster.namespace="),
        ([*TRAIN[:2], *TRAIN[3:], "out=work/run", *KUBERNETES], "out=work/run"),
        ([*TRAIN, *KUBERNETES, "data.url=work/latents"], "data.url=work/latents"),
        ([*TRAIN, *KUBERNETES, "data.also=[s3://b/a,more]"], "data.also=more"),
        ([*TRAIN, *KUBERNETES, "validation.url=held_out"], "validation.url=held_out"),
        ([*TRAIN, *KUBERNETES, "start_from=runs/1"], "start_from=runs/1"),
        ([*CACHE, *KUBERNETES, "text_encoder.path=classes://names"], "text_encoder.path=names"),
        (
            [*CACHE, *KUBERNETES, "text_encoder=minilm", "text_encoder.joined=[{path:clip}]"],
            "text_encoder.joined[0].path",
        ),
        ([*SAMPLE, *KUBERNETES, "prompts=prompts.txt"], "prompts=prompts.txt"),
        ([*SHARD, *KUBERNETES, "source.path=images"], "source.path=images"),
        ([*SHARD, *SKYPILOT, "cluster.gpus=0", "source.path=images"], "source.path=images"),
        ([*TRAIN, *SKYPILOT, "cluster.gpus=0", "data.url=/disk/latents"], "data.url=/disk/latents"),
        ([*TRAIN, "cluster=kubernetes"], "cluster.image"),
        (
            ["sample", "checkpoint=a", "prompts=[cat]", "out=b", "cluster.processes=2"],
            "cluster.processes=2",
        ),
        ([*TRAIN, "cluster=slurm", "cluster.workers=2"], "cluster.workers=2"),
        ([*SWEEP, "cluster.nodes=2"], "cluster.nodes=2"),
        ([*SWEEP, "cluster.cpus=2,4"], "cluster.cpus"),
        ([*SWEEP, "cluster=kubernetes", "cluster.image=image"], "cluster=kubernetes"),
        (
            [*TRAIN, *KUBERNETES, "cluster.jobset=true", f"cluster.name={'a' * 50}"],
            "cluster.name=",
        ),
        ([*TRAIN, *KUBERNETES, "cluster.secrets=['A=abc']"], "cluster.secrets='A'=..."),
        ([*TRAIN, *SKYPILOT], "cluster.accelerator"),
        ([*TRAIN, "cluster=skypilot", "cluster.gpus=0"], "cluster.image"),
        ([*TRAIN, *SKYPILOT, "cluster.gpus=0", "cluster.memory=much"], "cluster.memory=much"),
        ([*TRAIN, *SKYPILOT, "cluster.gpus=0", "cluster.name=a---b"], "cluster.name="),
        ([*TRAIN, *SKYPILOT, "cluster.gpus=0", "cluster.infra='aws us'"], "cluster.infra="),
        ([*TRAIN, *SKYPILOT, "cluster.gpus=0", "cluster.secrets=['A=abc']"], "cluster.secrets="),
        ([*TRAIN[:2], *TRAIN[3:], "out=/data/run", *SKYPILOT, "cluster.gpus=0"], "out=/data/run"),
        ([*SWEEP, *SKYPILOT], "cluster=skypilot"),
        (["status", "job=moon:1"], "job=moon:1"),
        (["stop", "job=skypilot:a b"], "job=skypilot:a b"),
        (["stop", "job=slurm:1; reboot"], "job=slurm:1; reboot"),
    ],
)
def test_what_a_job_cannot_be_is_refused(
    words: list[str], setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"ldm: {setting}") and shown.err.count("\n") == 1
    assert "abc" not in shown.err
