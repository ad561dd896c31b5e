"""What is secret in the environment of a run is in nothing that the run leaves."""

import secrets
from pathlib import Path

from tests.helpers.blackhole import blackhole
from tests.helpers.commands import ENVIRONMENT, LDM, wait_for_end
from tests.helpers.latents import SMALL_UNET, write_latents
from tests.helpers.processes import kill_process, start_process
from tests.helpers.wandb_file import read_history

NAMES = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "WANDB_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_TOKEN",
    "GOOGLE_API_KEY",
    "GCP_SERVICE_KEY",
    "AZURE_STORAGE_KEY",
    "AZURE_CLIENT_SECRET",
    "AZURE_STORAGE_CONNECTION_STRING",
    "OPENAI_API_KEY",
    "GITHUB_TOKEN",
    "GH_TOKEN",
    "GITLAB_TOKEN",
    "NPM_TOKEN",
    "TWINE_PASSWORD",
    "KUBE_TOKEN",
    "SLURM_JWT",
    "SKYPILOT_API_KEY",
    "LAMBDA_API_KEY",
    "RUNPOD_API_KEY",
    "COMET_API_KEY",
    "NEPTUNE_API_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
]
URLS = {
    "DATABASE_URL": "postgres://me:{}@host/db",
    "PIP_EXTRA_INDEX_URL": "https://me:{}@host/simple",
    "REDIS_URL": "redis://:{}@host",
}


def test_none_of_thirty_secrets_is_left_anywhere(tmp_path: Path) -> None:
    write_latents(tmp_path / "latents")
    canaries = {name: secrets.token_hex(20) for name in (*NAMES, *URLS)}
    assert len(canaries) == 30
    environment = {**ENVIRONMENT, **canaries}
    environment |= {name: url.format(canaries[name]) for name, url in URLS.items()}
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        environment[name] = str(tmp_path / name)
        (tmp_path / name).mkdir()
    command = [
        *LDM,
        "train",
        *SMALL_UNET,
        f"data.url={tmp_path / 'latents'}",
        f"out={tmp_path / 'run'}",
        "tracking.kind=online",
        "tracking.wandb_seconds=2",
        "tracking.tensorboard=true",
        "tracking.log_every_samples=8",
        "tracking.histograms_every_samples=8",
        "train.samples=16",
        "batch_size=8",
        "engine.precision=fp32",
    ]
    with blackhole() as hole:
        environment |= {"WANDB_BASE_URL": hole.url, "WANDB_MODE": "online"}
        process = start_process(command, tmp_path / "log", environment)
        try:
            ended = wait_for_end(process, tmp_path / "log")
        finally:
            kill_process(process)
        assert hole.heard  # W&B was asked, with the key of the environment
    assert ended.code == 0, ended.output
    assert "W&B does not take the run" in ended.output
    history = read_history(tmp_path / "run/wandb")
    assert [line["samples_seen"] for line in history] == [8, 16]
    files = [file for file in tmp_path.rglob("*") if file.is_file() and not file.is_symlink()]
    wanted = ("config.yaml", "commit.json", "metrics.jsonl", "lineage.json", "debug.log", "log")
    assert {*wanted} <= {file.name for file in files}
    found = {
        (name, str(file.relative_to(tmp_path)))
        for file in files
        for name, value in canaries.items()
        if value.encode() in file.read_bytes()
    }
    assert found == set()
