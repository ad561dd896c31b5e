import os
import signal
import sys

import pytest

from conf.errors import RunError
from data.process import process_mark, run_tasks, usable_cores


def _double(number):
    return 2 * number


def _die_at_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("processes", [1, 2])
def test_every_task_is_worked_on_once(processes):
    assert sorted(run_tasks(_double, range(7), processes)) == [0, 2, 4, 6, 8, 10, 12]


def test_a_process_that_is_killed_is_said_in_one_line():
    """As the kernel does to the largest one when memory is short."""
    with pytest.raises(RunError, match="was killed, most likely for want of memory") as caught:
        list(run_tasks(_die_at_three, range(7), 2))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel")
def test_cores_of_others_are_not_counted():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cores() == len(before)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process began")
def test_a_process_is_told_from_all_others():
    own = process_mark(os.getpid())
    assert own and own == process_mark(os.getpid())
    assert process_mark(os.getppid()) not in ("", own)
    assert process_mark(2**22 + 1) == ""  # above the highest number that there can be
