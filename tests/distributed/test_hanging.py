"""A rank that hangs ends the run; the others say which one it is, and where."""

import os
import re
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from data.collate import latent_batch
from tests.helpers.commands import ENVIRONMENT, LDM, running_ldm, wait_for_end, wait_until
from tests.helpers.latents import SMALL_UNET, train_small
from tests.helpers.processes import free_ports, kill_process, start_process
from tests.helpers.ranks import run_ranks
from training.engine.saving import hash_of
from training.engine.stored import check

LIMIT, GRACE = 3.0, 8.0
ENDLESS = (
    *SMALL_UNET,
    "engine=ddp",
    "engine.precision=fp32",
    "cluster.processes=2",
    "batch_size=8",
    "train.samples=8_000_000",
    "checkpoint.every_samples=80",
    "tracking.kind=off",
    f"guards.hang_seconds={LIMIT}",
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of processes")


def has_steps(run: Path) -> bool:
    return any(run.glob("checkpoints/*/commit.json"))


def steps(run: Path) -> int:
    return max(int(commit.parent.name) for commit in run.glob("checkpoints/*/commit.json"))


def pause(ranks: list[psutil.Process], seconds: float) -> None:
    for rank in ranks:
        rank.suspend()
    time.sleep(seconds)
    for rank in ranks:
        rank.resume()


def sleep_for_ever(stalled: Path) -> None:
    stalled.touch()
    threading.Event().wait()


def train_and_stall(latents: Path, out: Path, stalled: Path) -> None:
    """For `run_ranks`: rank 1 reads its checkpoint, and rank 0 saves, for longer than the limit.

    Then rank 1 never gets a sixth batch.
    """

    def collate(corpus: Any, places: range) -> Any:
        if os.environ["RANK"] == "1" and places.start >= 5 * 8:
            sleep_for_ever(stalled)
        return latent_batch(corpus, places)

    def hash_slowly(*given: Any) -> str:
        if os.environ["RANK"] == "0":
            time.sleep(LIMIT / 2)  # for each of several files
        return hash_of(*given)

    def check_slowly(*given: Any) -> None:
        if os.environ["RANK"] == "1":
            time.sleep(LIMIT / 2)  # for each of them, before ranks meet
        check(*given)

    patches = {
        "training.feed.latent_batch": collate,
        "training.engine.saving.hash_of": hash_slowly,
        "training.engine.checkpoint.check": check_slowly,
    }
    with ExitStack() as patched:
        for name, function in patches.items():
            patched.enter_context(mock.patch(name, function))
        settings = ("engine=ddp", "checkpoint.every_samples=24", "train.samples=8000")
        train_small(latents, out, *settings, f"guards.hang_seconds={LIMIT}")


def test_a_rank_whose_reading_never_ends_is_named_and_a_slow_one_is_not(
    latents: Path, tmp_path: Path
) -> None:
    stalled = tmp_path / "stalled"
    train_small(latents, tmp_path / "run", "train.samples=8")
    with pytest.raises(AssertionError, match="exit code 1") as ended:
        run_ranks(train_and_stall, 2, latents, tmp_path / "run", stalled)
    assert time.time() - stalled.stat().st_mtime < LIMIT + GRACE
    (line,) = set(re.findall("ldm: (.*)", str(ended.value)))
    assert (
        f"no progress for 3 s: rank 1 ({socket.gethostname()}) is still in step 5, reading, at "
        in line
    )
    assert "sleep_for_ever (distributed/test_hanging.py:" in line
    assert line.endswith("others wait in step 5, computing")


def test_a_stopped_rank_is_named_by_the_others_and_ended(latents: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    with running_ldm(log, "train", f"data.url={latents}", f"out={run}", *ENDLESS) as process:
        wait_until(lambda: has_steps(run), process, log)
        ranks = psutil.Process(process.pid).children(recursive=True)
        ranks = [rank for rank in ranks if "RANK" in rank.environ()]
        pause(ranks, LIMIT + 1)  # as with a machine that sleeps: nobody is at fault
        seen = steps(run)
        wait_until(lambda: steps(run) > seen, process, log)
        (second,) = [rank for rank in ranks if rank.environ()["RANK"] == "1"]
        second.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        ended = wait_for_end(process, log)
        assert time.monotonic() - began < LIMIT + GRACE
        assert not second.is_running()
    assert ended.code == 1, ended.output
    lines = [line for line in ended.output.splitlines() if line.startswith("ldm: ")]
    assert len(lines) == 1, ended.output
    assert f"rank 1 ({socket.gethostname()}) has given no sign of life since step" in lines[0]
    assert re.search(r", at (\w+|<\w+>) \(\w+/\w+\.py:\d+\) < ", lines[0])


def test_a_rank_whose_peers_meeting_place_is_gone_says_so(latents: Path, tmp_path: Path) -> None:
    """Without a launcher rank 0 holds the store."""
    port = str(free_ports(1)[0])
    run, logs = tmp_path / "run", [tmp_path / "0.log", tmp_path / "1.log"]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [*LDM, "train", f"data.url={latents}", f"out={run}", *ENDLESS]
    with ExitStack() as ending:
        ranks = []
        for number, log in enumerate(logs):
            place = {"RANK": str(number), "LOCAL_RANK": str(number), "GLOO_SOCKET_IFNAME": "lo"}
            ranks.append(start_process(command, log, {**ENVIRONMENT, **common, **place}))
            ending.callback(kill_process, ranks[-1])
        wait_until(lambda: has_steps(run), ranks[0], logs[0])
        ranks[0].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        ended = wait_for_end(ranks[1], logs[1])
        assert time.monotonic() - began < LIMIT + GRACE
    assert ended.code == 1, ended.output
    assert f"no progress for 3 s, and no answer from 127.0.0.1:{port}" in ended.output


def test_a_rank_that_never_comes_is_named(latents: Path, tmp_path: Path) -> None:
    """The first rank waits for it where ranks meet, before there is an engine."""
    log, port = tmp_path / "log", str(free_ports(1)[0])
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    environment = {**ENVIRONMENT, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    out = tmp_path / "run"
    command = [*LDM, "train", f"data.url={latents}", f"out={out}", *ENDLESS]
    with ExitStack() as ending:
        alone = start_process(command, log, environment)
        ending.callback(kill_process, alone)
        ended = wait_for_end(alone, log)
    assert ended.code == 1, ended.output
    assert "no progress for 3 s: rank 1 has never given a sign of life" in ended.output
