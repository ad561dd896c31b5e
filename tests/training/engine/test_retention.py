"""Which checkpoints are kept."""

from pathlib import Path

import pytest

from data.storage import open_prefix
from training.engine.commit import COMMIT, FIELDS, seal
from training.engine.retention import (
    Keep,
    Measured,
    best_of,
    first_of_each,
    kept_steps,
    remove_others,
)


def test_one_checkpoint_may_be_the_first_after_several_multiples() -> None:
    assert first_of_each({"a": 4, "b": 25, "c": 26, "d": 31}, 10) == ["b", "d"]
    assert first_of_each({}, 10) == []


def test_the_best_have_the_lowest_finite_losses_and_of_equals_the_first_counts() -> None:
    losses = {"a": 0.5, "b": 0.2, "c": 0.2, "d": float("nan"), "f": 0.3}
    assert best_of(losses, 1) == ["b"]
    assert best_of(losses, 3) == ["b", "c", "f"]
    assert best_of(losses, 9) == ["b", "c", "f", "a"]
    assert best_of(losses, 0) == []


def test_one_reason_is_enough_to_be_kept() -> None:
    seen = {f"{i}": 4 * i for i in range(1, 9)}
    losses: dict[str, Measured] = dict.fromkeys(seen, (1.0, "v")) | {"2": (0.1, "v"), "3": None}
    assert kept_steps(seen, losses, Keep(2)) == {"7", "8"}
    # 12 is the first after 10, 20 and 32 those after 20 and 30.
    assert kept_steps(seen, losses, Keep(1, every_samples=10)) == {"3", "5", "8"}
    assert kept_steps(seen, losses, Keep(1, best=1)) == {"2", "8"}


def test_losses_of_another_validation_are_not_compared() -> None:
    """An easier set does not evict the best by the one before it."""
    seen = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    losses = {"a": (0.5, "hard"), "b": (0.4, "hard"), "c": (0.2, "easy"), "d": (0.1, "easy")}
    assert kept_steps(seen, losses, Keep(1, best=1)) == {"b", "d", "e"}


@pytest.mark.parametrize("committed", [True, False])
def test_the_rest_is_removed_and_what_was_given_up_too(tmp_path: Path, committed: bool) -> None:
    out = open_prefix(str(tmp_path), "out")
    for step, loss in ((1, 0.1), (2, 0.2), (3, 0.3), (9, 0.0)):
        folder = out / f"checkpoints/{step:08d}"
        folder.write("model-00000.safetensors", b"")
        if step != 9 or committed:  # 9 was broken, and the run went on from one before it
            commit = {"samples_seen": 4 * step, "val_loss": loss, "validation": "v"}
            folder.write(COMMIT, seal(dict.fromkeys(FIELDS) | commit))
    remove_others(out, "00000003", Keep(1, best=1))
    assert out.names("checkpoints") == ["00000001", "00000003"]
