"""`ldm train` on a store that goes away while it reads."""

import os
import signal
from pathlib import Path

import pytest

from tests.helpers.commands import running_ldm, wait_for_end, wait_until
from tests.helpers.faults import FaultyProxy
from tests.helpers.latents import (
    SMALL_UNET,
    assert_same_state,
    checkpoint_of,
    write_latents,
)


def _settings(data: str, run: Path, engine: str, ranks: int, samples: int) -> list[str]:
    return [
        *SMALL_UNET,
        *f"data.url={data} out={run} engine={engine} cluster.processes={ranks}".split(),
        *f"train.samples={samples} batch_size=4 engine.precision=fp32".split(),
        # Nothing is kept in memory, so that it needs its store to the end.
        *[
            "tracking.kind=off",
            "tracking.log_every_samples=4",
            "data.threads=1",
            "data.memory_gb=0",
        ],
    ]


@pytest.mark.parametrize(("engine", "ranks"), [("single", 1), ("ddp", 2)])
def test_a_run_that_waits_for_its_data_can_be_stopped_and_goes_on(
    s3: str, tmp_path: Path, proxy: FaultyProxy, engine: str, ranks: int
) -> None:
    """A scheduler gives a run some seconds; one that waited on would be killed with its work."""
    data, run, log = f"{s3}/{engine}", tmp_path / "run", tmp_path / "log"
    write_latents(data)
    # In a file and not in checkpoints, which appear at the end only.
    metrics = run / "metrics.jsonl"
    with running_ldm(log, "train", *_settings(data, run, engine, ranks, 8_000_000)) as process:
        wait_until(lambda: " images, " in log.read_text() or metrics.exists(), process, log)
        proxy.stop()
        wait_until(lambda: "waiting for the store" in log.read_text(), process, log)
        os.kill(process.pid, signal.SIGTERM)
        ended = wait_for_end(process, log, timeout=60)
    assert ended.code == 75, ended.output
    assert "checkpoint saved; the same command goes on from there" in ended.output
    assert "Traceback" not in ended.output
    seen = checkpoint_of(run).progress.samples_seen
    assert seen > 0


def test_a_run_whose_store_comes_back_ends_as_if_it_had_not_gone(
    s3: str, tmp_path: Path, proxy: FaultyProxy
) -> None:
    data = f"{s3}/back"
    write_latents(data)
    for name, seconds in (("steady", 0.0), ("shaken", 3.0)):
        run, log = tmp_path / name, tmp_path / "log"
        with running_ldm(log, "train", *_settings(data, run, "single", 1, 400)) as process:
            wait_until(lambda log=log: "from the start" in log.read_text(), process, log)
            if seconds:
                with proxy.gone(seconds):
                    pass
            ended = wait_for_end(process, log)
        assert ended.code == 0, ended.output
    steady, shaken = checkpoint_of(tmp_path / "steady"), checkpoint_of(tmp_path / "shaken")
    assert_same_state(shaken, steady)
