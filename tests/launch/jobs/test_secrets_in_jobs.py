"""Thirty planted secrets: none is in a job, wherever they were put."""

from dataclasses import replace

import pytest

from conf.compose import compose_typed
from conf.errors import UserError
from conf.rules import check
from launch.cli import run
from tests.training.tracking.test_secrets import NAMES, URLS

CANARY = "c0ffee" * 6
TRAIN = ("data.url=s3://b/latents", "out=s3://b/run", "train.samples=8", "engine=ddp")
JOBS = {
    "slurm": ("cluster=slurm",),
    "kubernetes": ("cluster=kubernetes", "cluster.image=image@sha256:12"),
    "skypilot": ("cluster=skypilot", "cluster.image=image@sha256:12", "cluster.gpus=0"),
}
VALUES = [f"{name}={CANARY}" for name in NAMES]
VALUES += [f"{name}={url.format(CANARY)}" for name, url in URLS.items()]
VALUES += [f"DSN=host=h user=me password={CANARY}", f"HEADER=Bearer {CANARY}"]
VALUES += [f"HTTPS_PROXY=http://me:{CANARY}@proxy:3128", f"LINK=https://host/x?sig={CANARY}"]


@pytest.mark.parametrize("kind", JOBS)
def test_what_is_secret_in_the_environment_is_in_no_job(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in VALUES:
        monkeypatch.setenv(*text.split("=", 1))
    words = ["train", *TRAIN, *JOBS[kind], "cluster.env=['NCCL_DEBUG=INFO']"]
    assert run([*words, "cluster.render=true"]) == 0
    shown = capsys.readouterr()
    assert "NCCL_DEBUG" in shown.out
    assert CANARY not in shown.out + shown.err


@pytest.mark.parametrize("kind", JOBS)
def test_what_is_secret_among_the_variables_of_a_job_is_refused(kind: str) -> None:
    config = compose_typed("train", [*TRAIN, *JOBS[kind]])
    check(config)
    for text in VALUES:
        told = replace(config, cluster=replace(config.cluster, env=["NCCL_DEBUG=INFO", text]))
        with pytest.raises(UserError, match=r"^cluster\.env=") as caught:
            check(told)
        assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ("cluster=slurm", f"cluster.env=['HTTPS_PROXY=http://me:{CANARY}@proxy']"),
        ("cluster=slurm", f"cluster.flags=['--export=WANDB_API_KEY={CANARY}']"),
        ("cluster=slurm", f"data.url=s3://me:{CANARY}@b/latents"),
        ("-m", "cluster=slurm", f"data.url=s3://b/latents,s3://me:{CANARY}@b/x"),
        (
            *("-m", "cluster=slurm", "optimizer.lr=1,2"),
            f"sweep.storage='postgresql:///db?user=me&password={CANARY}'",
        ),
    ],
)
def test_what_is_secret_on_the_command_line_of_a_job_is_refused(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    told = {text.partition("=")[0]: text for text in (*TRAIN, "validation.url=v", *words)}
    assert run(["train", *told.values(), "cluster.render=true"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert CANARY not in shown.err
