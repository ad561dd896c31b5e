import threading
import time
from collections.abc import Callable

from training.tracking.stall import Stall


def until(there: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not there():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_a_stall_is_told_once_and_so_is_its_end() -> None:
    beats, told = [0], []
    with Stall(0.2, lambda: beats[0], told.append):
        until(lambda: len(told) == 1)
        time.sleep(0.5)
        assert len(told) == 1
        beats[0] += 1
        until(lambda: len(told) == 2)
    assert "no progress for" in told[0]
    assert "it goes on" in told[1]


def test_what_gets_on_is_no_stall() -> None:
    told: list[str] = []
    with Stall(5.0, time.monotonic, told.append):
        time.sleep(1.5)
    assert told == []


def test_never_is_never() -> None:
    before = threading.active_count()
    with Stall(0.0, lambda: 0, lambda line: None):
        assert threading.active_count() == before
