"""What a job of several ranks says when it ends."""

from data.last_words import RankError
from launch.local import PREEMPTED_EXIT_CODE, causes

STOPPED = RankError("told to stop", PREEMPTED_EXIT_CODE)
WRONG = RankError("data.url: is wrong", 2)


def test_ranks_stopped_for_a_failed_peer_are_not_its_cause() -> None:
    assert causes([STOPPED, WRONG, STOPPED]) == [WRONG]


def test_a_stop_is_told_where_nothing_failed() -> None:
    assert causes([STOPPED, STOPPED]) == [STOPPED, STOPPED]
    assert causes([]) == []
