import io
import json
import sys

import pytest

from data import progress as module
from data.progress import SUMMARY, peak_memory, progress, read_summary, write_summary
from data.say import say
from data.storage import open_prefix


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def forward(seconds):
        now[0] += seconds

    return forward


def test_a_log_has_a_line_every_so_often(clock, capsys):
    with progress("shard", 1000) as meter:
        for _ in range(40):
            clock(1)
            meter.advance(10)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "shard: 110 of 1,000 images, 10 images/s, 89 s to go"
    assert len(lines) == 3


def test_the_rate_is_of_this_process(clock, capsys):
    with progress("shard", 1000, done=500, unit="samples") as meter:
        clock(20)
        meter.advance(100, "loss 0.5")
        assert meter.rate == 5
        assert meter.done == 600
    line = "shard: 600 of 1,000 samples, 5 samples/s, 80 s to go; loss 0.5\n"
    assert capsys.readouterr().out == line


def test_other_ranks_count_in_silence(clock, capsys):
    with progress("train", 1000, shown=False) as meter:
        clock(20)
        meter.advance(100)
    assert meter.done == 100
    assert capsys.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar_that_is_taken_off_when_the_work_fails(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(RuntimeError), progress("shard", 1000) as meter:
        meter.advance(250)
        assert meter.bar.live.is_started
        raise RuntimeError
    assert not meter.bar.live.is_started
    assert "250/1000" in terminal.getvalue()


def test_a_line_is_out_at_once(monkeypatch):
    class Log(io.StringIO):
        flushed = False

        def flush(self):
            self.flushed = True

    monkeypatch.setattr(sys, "stdout", Log())
    say("here")
    assert sys.stdout.flushed and sys.stdout.getvalue() == "here\n"


def test_a_summary_is_printed_and_kept(url, capsys):
    out = open_prefix(url, "out")
    assert read_summary(out) == []
    write_summary(out, "cache", 2000, 4.0, 3 * 10**9, truncated=7)
    assert capsys.readouterr().out == (
        f"cache: 2,000 images in 4.0 s (500 images/s), peak memory 3.00 GB, wrote {url}\n"
    )
    assert read_summary(out) == [
        {
            "command": "cache",
            "samples": 2000,
            "seconds": 4.0,
            "peak_memory": 3 * 10**9,
            "truncated": 7,
        }
    ]


def test_an_interrupted_command_leaves_a_part_for_every_process(tmp_path):
    out = open_prefix(str(tmp_path), "out")
    for samples in (10, 20):
        write_summary(out, "train", samples, 1.0, 1)
    assert [part["samples"] for part in read_summary(out)] == [10, 20]
    assert len(json.loads((tmp_path / SUMMARY).read_bytes())) == 2


def test_peak_memory_is_in_bytes_and_never_falls():
    before = peak_memory()
    ballast = bytearray(64 << 20)
    assert 10 << 20 < before <= peak_memory() < 1 << 40
    del ballast
    assert peak_memory() >= before


def test_ranks_that_end_at_once_do_not_lose_each_others_parts(tmp_path):
    out = open_prefix(str(tmp_path), "out")
    for rank, samples in ((1, 20), (0, 10), (1, 30)):
        write_summary(out, "cache", samples, 1.0, 1, f"{rank}-of-2")
    assert [part["samples"] for part in read_summary(out)] == [10, 20, 30]
