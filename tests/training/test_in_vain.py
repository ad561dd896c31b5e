"""A run that is stopped again and again before its first step ends; a scheduler starts no other."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from conf.enums import Precision
from conf.errors import Preempted, RunError
from data.storage import Prefix, open_prefix
from tests.helpers.latents import train_small, write_latents
from training import in_vain
from training.engine.checkpoint import Progress, first_progress
from training.in_vain import STOPPED, bounded_stops
from training.loop import Loop
from training.stop import StopFlag


def stop(out: Prefix, start: Progress, main: bool = True) -> type[BaseException]:
    """What a start that is stopped at once ends with."""
    try:
        with bounded_stops(out, start, main):
            raise Preempted("told to stop")
    except (Preempted, RunError) as error:
        return type(error)


def test_what_counts_are_stops_in_a_row_at_one_place(tmp_path: Path) -> None:
    out = open_prefix(str(tmp_path), "out")
    first = first_progress(Precision.fp32)
    later = replace(first, updates=2, samples_seen=16)
    assert [stop(out, first) for _ in range(2)] == [Preempted] * 2
    assert stop(out, first, main=False) is Preempted  # one rank counts for all
    assert [stop(out, later) for _ in range(4)] == [Preempted, Preempted, RunError, RunError]


def test_a_stop_after_a_step_is_never_in_vain(tmp_path: Path) -> None:
    out = open_prefix(str(tmp_path), "out")
    out.write("checkpoints/00000001/commit.json", b"{}")
    assert [stop(out, first_progress(Precision.fp32)) for _ in range(5)] == [Preempted] * 5
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
    with pytest.raises(RunError, match="stopped 1 times in a row at 0 samples"):
        train_small(tmp_path / "latents", tmp_path / "run")
