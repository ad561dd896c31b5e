import threading

import pytest

from training.tracking.behind import Behind


def test_calls_come_in_order_and_all_before_the_end() -> None:
    seen: list[object] = []
    behind = Behind("it", lambda: seen, lambda target: target.append("end"))
    for i in range(200):
        behind.put(lambda target, i=i: target.append(i))
    assert behind.close(30)
    assert seen == [*range(200), "end"]


def test_nobody_waits_for_a_target_that_does_not_come(capsys: pytest.CaptureFixture[str]) -> None:
    there, seen = threading.Event(), []

    def start() -> list[int]:
        there.wait()
        return seen

    behind = Behind("it", start, lambda target: None, room=3)
    for i in range(10):
        behind.put(lambda target, i=i: target.append(i))
    assert not behind.close(0.01)
    there.set()
    assert behind.close(30)
    assert seen == [0, 1, 2]
    assert behind.missed == 7
    assert capsys.readouterr().out.count("does not keep up") == 1


@pytest.mark.parametrize("when", ["start", "call", "end"])
def test_what_fails_is_told_and_stops_nobody(when: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(at: str) -> None:
        if at == when:
            raise OSError("no room left")

    behind = Behind("it", lambda: fail("start"), lambda target: fail("end"), room=2)
    for _ in range(10):
        behind.put(lambda target: fail("call"))
    assert behind.close(30)
    assert "it: the record ends here (no room left); metrics.jsonl" in capsys.readouterr().out
