"""A scheduler's signal to `ldm train` alone ends in a checkpoint and the code that requeues."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.commands import ldm, running_ldm, wait_for_end, wait_until
from tests.helpers.latents import SMALL_UNET, write_latents

SECONDS_TO_SAVE = 60.0  # that a scheduler's grace period may be, to the end of all processes


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
        told = time.monotonic()
        os.kill(process.pid, number)
        ended = wait_for_end(process, log)
    assert time.monotonic() - told < SECONDS_TO_SAVE
    assert ended.code == 75, ended.output
    assert "checkpoint saved; the same command goes on from there" in ended.output
    assert "Traceback" not in ended.output
    assert periodic % 100 == 0
    # Equal if the signal came while the periodic one was written.
    assert periodic <= steps(run)[-1] < periodic + 100


def test_a_checkpoint_that_cannot_be_written_is_no_preemption(tmp_path: Path) -> None:
    """A scheduler would start the job again for ever."""
    write_latents(tmp_path / "latents")
    run, log = tmp_path / "run", tmp_path / "log"
    settings = (
        f"data.url={tmp_path}/latents out={run} engine=ddp cluster.processes=2"
        " engine.precision=fp32 train.samples=8_000_000 batch_size=8 tracking.kind=off"
        " tracking.log_every_samples=800"
    )
    with running_ldm(log, "train", *settings.split(), *SMALL_UNET) as process:
        wait_until(lambda: " images, " in log.read_text(), process, log)
        (run / "checkpoints").write_text("no folder")
        os.kill(process.pid, signal.SIGTERM)
        ended = wait_for_end(process, log)
    assert ended.code == 1, ended.output
    assert "a checkpoint could not be saved by rank" in ended.output
    assert ended.output.count("ldm: ") == 1
    assert "Traceback" not in ended.output
    assert "death signal" not in ended.output


def test_what_one_rank_finds_is_said_once_and_the_others_say_nothing(tmp_path: Path) -> None:
    manifest = write_latents(tmp_path / "latents")
    for shard in manifest.shards:
        file = tmp_path / "latents" / shard.tar
        content = bytearray(file.read_bytes())
        start = content.find(b"NUMPY")
        content[start + 200] ^= 1
        file.write_bytes(content)
    settings = (
        f"data.url={tmp_path}/latents out={tmp_path}/run engine=ddp cluster.processes=2"
        " engine.precision=fp32 train.samples=800 batch_size=2 tracking.kind=off"
    )
    ended = ldm(tmp_path / "log", "train", *settings.split(), *SMALL_UNET)
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    assert ended.output.count("ldm: ") == 1
    assert ".npy: " in ended.output


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
