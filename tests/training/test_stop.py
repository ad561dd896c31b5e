import os
import signal

import pytest

from training.stop import SIGNALS, stop_flag


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag(number: signal.Signals) -> None:
    with stop_flag(lambda: None) as flag:
        assert not flag.requested
        os.kill(os.getpid(), number)
        assert flag.requested


def test_a_second_interrupt_does_not_wait() -> None:
    with stop_flag(lambda: None) as flag:
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_handlers_that_were_there_come_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_flag(lambda: None):
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
