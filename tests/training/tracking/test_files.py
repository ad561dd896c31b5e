"""metrics.jsonl is appended to where it can be, whole after every write, and strict JSON."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from data.storage import Prefix, open_prefix
from training.tracking import files
from training.tracking.files import METRICS, RunFiles, read_metrics


def line(place: int, **more: float) -> dict[str, Any]:
    return {"samples_seen": place, **more}


def written(out: Prefix) -> list[int]:
    return [one["samples_seen"] for one in read_metrics(out)]


def refused(text: str) -> float:
    raise AssertionError(f"{text} is no JSON")


def test_a_number_that_is_not_finite_is_null_and_read_as_nan(tmp_path: Path) -> None:
    out = open_prefix(str(tmp_path), "out")
    run = RunFiles(out, 0)
    run.add(line(8, loss=math.nan, grad_norm=math.inf, lr=0.5))
    run.writer()()
    kept = json.loads((tmp_path / METRICS).read_text(), parse_constant=refused)
    assert kept == {"samples_seen": 8, "loss": None, "grad_norm": None, "lr": 0.5}
    (told,) = read_metrics(out)
    assert math.isnan(told["loss"]) and math.isnan(told["grad_norm"]) and told["lr"] == 0.5
    again = RunFiles(out, 8)
    again.add(line(16))
    again.writer()()
    texts = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(text, parse_constant=refused)["samples_seen"] for text in texts] == [8, 16]


def test_a_local_file_grows_by_what_is_new(tmp_path: Path) -> None:
    out = open_prefix(str(tmp_path), "out")
    run = RunFiles(out, 0)
    run.writer()()
    assert (tmp_path / METRICS).read_bytes() == b""  # a run that logs nothing has one too
    run.add(line(8))
    run.writer()()
    first = (tmp_path / METRICS).stat().st_ino
    for place in (16, 24, 32):
        run.add(line(place))
        if place != 16:
            run.writer()()
    assert (tmp_path / METRICS).stat().st_ino == first  # a file that is written whole is another
    assert written(out) == [8, 16, 24, 32]
    resumed = RunFiles(out, 32)
    resumed.add(line(40))
    resumed.writer()()
    assert (tmp_path / METRICS).stat().st_ino == first
    resumed = RunFiles(out, 24)
    assert [one["samples_seen"] for one in resumed.lines] == [8, 16, 24]
    resumed.add(line(32, loss=0.5))
    resumed.writer()()
    assert written(out) == [8, 16, 24, 32]


@pytest.mark.parametrize("cut", [1, 10, 25])
def test_a_line_that_a_kill_has_cut_is_no_line(tmp_path: Path, cut: int) -> None:
    out = open_prefix(str(tmp_path), "out")
    run = RunFiles(out, 0)
    for place in (8, 16):
        run.add(line(place, loss=0.5))
        run.writer()()
    content = (tmp_path / METRICS).read_bytes()
    (tmp_path / METRICS).write_bytes(content[:-cut])
    assert written(out) == [8]
    resumed = RunFiles(out, 8)
    resumed.add(line(16, loss=0.25))
    resumed.writer()()
    assert [one["loss"] for one in read_metrics(out)] == [0.5, 0.25]


@pytest.mark.parametrize("change", ["gone", "longer"])
def test_a_file_that_somebody_has_changed_is_written_whole(tmp_path: Path, change: str) -> None:
    out = open_prefix(str(tmp_path), "out")
    run = RunFiles(out, 0)
    run.add(line(8))
    run.writer()()
    if change == "gone":
        (tmp_path / METRICS).unlink()
    else:
        with (tmp_path / METRICS).open("a") as file:
            file.write("more\n")
    run.add(line(16))
    run.writer()()
    assert written(out) == [8, 16]


def test_a_store_is_sent_the_whole_file_the_less_often_the_longer_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = open_prefix(f"memory://{tmp_path.name}", "out")
    monkeypatch.setattr(files, "BYTES_A_SECOND", 20.0)
    run = RunFiles(out, 0)
    run.add(line(8))
    run.writer()()
    assert run.pause == 15.0
    for place in range(16, 800, 8):
        run.add(line(place))
    run.writer()()
    assert run.pause == len(out.read(METRICS)) / 20.0 > 60.0
    assert written(out) == [*range(8, 800, 8)]
    assert RunFiles(out, 800).pause == run.pause
    assert RunFiles(open_prefix(str(tmp_path), "out"), 0).pause == 15.0
