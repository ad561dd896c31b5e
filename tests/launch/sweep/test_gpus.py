import pytest

from launch.sweep.gpus import VISIBLE, gpus_of_place, visible_gpus


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ("0,1", ["0", "1"]),
        ("3, GPU-8f2a", ["3", "GPU-8f2a"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2,-1,3", ["2"]),
    ],
)
def test_gpus_are_those_that_the_environment_shows(
    told: str, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, told)
    assert visible_gpus() == seen


@pytest.mark.parametrize(
    ("each", "given"),
    [
        (1, [["a"], ["b"], ["c"], ["a"]]),
        (2, [["a", "b"], ["c", "a"], ["b", "c"], ["a", "b"]]),
        (4, [["a", "b", "c"]] * 4),
    ],
)
def test_trials_get_gpus_of_their_own_while_there_are_some(
    each: int, given: list[list[str]]
) -> None:
    found = [gpus_of_place(["a", "b", "c"], place, each) for place in range(4)]
    assert [sorted(one) for one in found] == [sorted(one) for one in given]
