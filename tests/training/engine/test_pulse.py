"""Who is at fault is a function of what the ranks last said."""

import threading
from dataclasses import replace

import pytest

from training.engine.pulse import Phase, Pulse, main_stack, reading_stacks, verdict

AT = Pulse(
    count=7,
    step=5,
    phase=Phase.computing,
    quiet=0.5,
    stack="wait (a/b.py:3)",
    waits=True,
    host="node",
    process=12,
    mark="mark",
)
BEHIND = replace(AT, phase=Phase.reading, stack="read (data/tar.py:9)", host="other", waits=False)


def test_a_pulse_comes_back_from_its_bytes() -> None:
    assert Pulse.parse(BEHIND.dump()) == BEHIND


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ((4, Phase.computing), (5, Phase.validating)),
        ((5, Phase.validating), (5, Phase.saving)),
        ((5, Phase.saving), (5, Phase.reading)),
        ((5, Phase.reading), (5, Phase.computing)),
    ],
)
def test_a_rank_behind_the_others_is_at_fault(
    earlier: tuple[int, Phase], later: tuple[int, Phase]
) -> None:
    slow = replace(BEHIND, step=earlier[0], phase=earlier[1])
    fast = replace(AT, step=later[0], phase=later[1])
    assert verdict({0: fast, 1: slow, 2: fast}, set(), 3) == (
        f"rank 1 (other) is still in step {earlier[0]}, {earlier[1].name}, at read (data/tar.py:9)"
        f"; others wait in step {later[0]}, {later[1].name}"
    )


def test_a_silent_rank_is_at_fault_whoever_is_behind() -> None:
    assert verdict({0: BEHIND, 1: AT, 2: AT}, {2}, 3) == (
        "rank 2 (node) has given no sign of life since step 5, computing, at wait (a/b.py:3)"
    )
    assert verdict({0: AT}, set(), 2) == "rank 1 has never given a sign of life"


def test_of_equally_far_ranks_the_one_outside_of_a_collective_is_at_fault() -> None:
    works = replace(AT, waits=False, stack="loop (x.py:1)")
    found = verdict({0: AT, 1: works, 2: AT}, set(), 3)
    assert found.startswith("rank 1 (node) is still in") and "rank 0" not in found
    assert verdict({0: AT, 1: AT}, set(), 2).startswith("no rank is behind the others: rank 0")


def test_a_rank_that_is_done_is_never_at_fault() -> None:
    done = replace(AT, step=1, done=True)
    assert "rank 1" not in verdict({0: AT, 1: done}, set(), 2)


def test_stacks_are_told_from_the_inside_out() -> None:
    stack, waits = main_stack()
    functions = [part.split(" ")[0] for part in stack.split(" < ")]
    here = test_stacks_are_told_from_the_inside_out.__name__
    assert functions[:2] == ["main_stack", here] and not waits


def test_a_reading_thread_is_shown_while_it_has_work() -> None:
    going = threading.Event()

    def read_a_shard() -> None:
        going.wait()

    thread = threading.Thread(target=read_a_shard, name="read-ahead_0")
    thread.start()
    try:
        assert "read_a_shard (engine/test_pulse.py:" in reading_stacks()
    finally:
        going.set()
        thread.join()
    assert reading_stacks() == ""
