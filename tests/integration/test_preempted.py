"""A scheduler's signal to `ldm train` alone ends in a checkpoint and the code that requeues."""

import os
import signal
from pathlib import Path

import pytest

from tests.helpers.commands import running_ldm, wait_for_end, wait_until
from tests.helpers.latents import SMALL_UNET, write_latents


def steps(run: Path) -> list[int]:
    return sorted(int(commit.parent.name) for commit in run.glob("checkpoints/*/commit.json"))


@pytest.mark.parametrize(
    ("engine", "number"),
    [("ddp", signal.SIGTERM), ("ddp", signal.SIGUSR1), ("single", signal.SIGTERM)],
)
def test_a_signal_saves_and_asks_to_be_started_again(
    tmp_path: Path, engine: str, number: signal.Signals
) -> None:
    write_latents(tmp_path / "latents")
    run, log = tmp_path / "run", tmp_path / "log"
    ranks = {"ddp": 2, "single": 1}[engine]
    settings = (
        f"data.url={tmp_path}/latents out={run} engine={engine} cluster.processes={ranks}"
        " engine.precision=fp32 train.samples=8_000_000 batch_size=8 checkpoint.every_samples=800"
        " tracking.kind=off"
    )

    with running_ldm(log, "train", *settings.split(), *SMALL_UNET) as process:
        wait_until(lambda: bool(steps(run)), process, log)
        periodic = steps(run)[-1]
        os.kill(process.pid, number)
        ended = wait_for_end(process, log)
    assert ended.code == 75, ended.output
    assert "checkpoint saved; the same command goes on from there" in ended.output
    assert "Traceback" not in ended.output
    assert periodic % 100 == 0
    assert steps(run)[-1] > periodic
    assert steps(run)[-1] % 100, "it went on to the next periodic checkpoint"


def test_the_demo_passes_a_signal_on_and_waits_for_the_checkpoint(tmp_path: Path) -> None:
    run, log = tmp_path / "out" / "autoencoder", tmp_path / "log"
    arguments = ("demo", f"out={tmp_path}/out", "recipe=emoji_tiny", "processes=1")
    with running_ldm(log, *arguments) as process:
        wait_until(lambda: bool(steps(run)), process, log)
        os.kill(process.pid, signal.SIGTERM)
        ended = wait_for_end(process, log)
    assert ended.code == 75, ended.output
    assert "checkpoint saved; the same command goes on from there" in ended.output
    assert "demo: stopped in autoencoder (exit code 75)" in ended.output
    assert "Traceback" not in ended.output


def test_a_command_without_checkpoints_stops_between_two_files(tmp_path: Path) -> None:
    out, log = tmp_path / "images", tmp_path / "log"
    with running_ldm(log, "shard", "source=openmoji", f"out={out}", "shard_samples=32") as process:
        wait_until(lambda: any(out.glob("index/*.json")), process, log)
        os.kill(process.pid, signal.SIGTERM)
        ended = wait_for_end(process, log)
    assert ended.code == 75, ended.output
    assert ended.output.endswith("ldm: told to stop; the same command goes on from there\n")
    assert not (out / "manifest.json").exists()
