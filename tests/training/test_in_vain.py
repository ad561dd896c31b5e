"""A run that is stopped again and again before its first step ends; a scheduler starts no other."""

import os
import signal
from pathlib import Path

import pytest

from conf.errors import Preempted, RunError
from data.storage import Prefix, open_prefix
from tests.helpers.latents import train_small, write_latents
from training import in_vain
from training.in_vain import STOPPED, bounded_stops
from training.loop import Loop
from training.stop import StopFlag


def stop(out: Prefix, main: bool = True, saves: str = "") -> type[BaseException]:
    """What a start ends with that is stopped at once, or after it has saved a checkpoint."""
    try:
        with bounded_stops(out, main):
            if saves:
                out.write(f"checkpoints/{saves}/commit.json", b"{}")
            raise Preempted("told to stop")
    except (Preempted, RunError) as error:
        return type(error)


def test_what_counts_are_stops_in_a_row_at_one_place(tmp_path: Path) -> None:
    out = open_prefix(str(tmp_path), "out")
    assert [stop(out) for _ in range(2)] == [Preempted] * 2
    for _ in range(2):  # one rank counts for all, and all end alike
        assert stop(out, main=False) is RunError
    assert stop(out, saves="00000002") is Preempted
    assert [stop(out) for _ in range(4)] == [Preempted, Preempted, RunError, RunError]


def test_a_stop_after_a_step_is_never_in_vain(tmp_path: Path) -> None:
    out = open_prefix(str(tmp_path), "out")
    assert [stop(out, saves=f"0000000{n}") for n in range(5)] == [Preempted] * 5
    assert not out.exists(STOPPED)


def test_a_training_that_never_has_time_for_a_step_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_latents(tmp_path / "latents")

    def signalled(_: Loop, flag: StopFlag) -> bool:
        os.kill(os.getpid(), signal.SIGUSR1)  # as a scheduler does, before the first step
        return flag.requested

    monkeypatch.setattr(Loop, "_told", signalled)
    monkeypatch.setattr(in_vain, "MOST", 1)
    with pytest.raises(RunError, match="stopped 1 times in a row after step 0"):
        train_small(tmp_path / "latents", tmp_path / "run")
