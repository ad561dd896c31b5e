"""What a person sees of a step."""

import io
import sys
from pathlib import Path

import pytest

from data.progress import progress
from tests.helpers.latents import train_small, write_latents
from training.shown import shown

MEANS = {"loss": 0.12341, "lr": 1e-4, "grad_norm": 0.5312, "skipped": 0.0}
FIGURES = {"waiting_share": 0.0012, "mfu": 0.3, "peak_memory": 41.2e9, "images_per_second": 9.0}
STEP = "loss 0.1234, lr 1.0e-04, grad 0.53"


def test_a_step_has_its_figures_and_those_of_the_last_line_of_metrics() -> None:
    assert shown(MEANS, {}) == STEP
    assert shown(MEANS, FIGURES) == f"{STEP}, wait 0.1%, MFU 30.0%, 41.2 GB"
    assert shown(MEANS, {**FIGURES, "peak_device_memory": 7e9}).endswith(", 7.0 GB")


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_all_of_it(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    with progress("train", 400_000_000) as meter:
        meter.advance(123_456_789, shown(MEANS, FIGURES))
        meter.started -= 1e9  # seconds: a slow one
        meter.advance(0, shown(MEANS, FIGURES))
    last = [line for line in terminal.getvalue().splitlines() if "images/s" in line][-1]
    assert "123456789/400000000" in terminal.getvalue()
    assert f"0 images/s, {STEP}, wait 0.1%, MFU 30.0%, 41.2 GB" in last


def test_a_log_s_line_has_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_latents(tmp_path / "latents")
    monkeypatch.setattr("data.progress.SECONDS_BETWEEN_LINES", 0.0)
    train_small(tmp_path / "latents", tmp_path / "run", "tracking.log_every_samples=8")
    lines = [line for line in capsys.readouterr().out.splitlines() if " images, " in line]
    assert [line.partition(" images, ")[0] for line in lines] == [
        f"train: {seen} of 24" for seen in (8, 16, 24)
    ]
    words = ("images/s,", "s to go; loss ", ", lr ", ", grad ", ", wait ", ", MFU ", " GB")
    assert all(word in lines[-1] for word in words), lines
    assert max(map(len, lines)) <= 120
