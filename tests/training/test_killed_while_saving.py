"""`ldm train` that is killed at any byte of a checkpoint goes on, and ends as if nothing had been.

`LDM_TEST_KILLS` says at how many bytes; 8 by default, and a hundred of a smaller network in
`engine/test_checkpoint.py`.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.storage import Prefix, open_prefix
from tests.helpers.latents import (
    adam_moments,
    assert_equal,
    assert_same_state,
    checkpoint_of,
    train_small,
    write_latents,
)
from training.engine.checkpoint import latest_checkpoint
from training.tracking.files import read_metrics

KILLS = int(os.environ.get("LDM_TEST_KILLS", "8"))
BATCH, KILLED_AT, SAMPLES = 8, 16, 24
SETTINGS = (
    f"checkpoint.every_samples={BATCH}",
    f"tracking.log_every_samples={BATCH}",
    "guards.dry_batch=false",
)
SECOND = f"checkpoints/{KILLED_AT // BATCH:08d}/"

Writes = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def peaceful(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Writes]:
    """A run's latents, the run, and what it wrote of its second checkpoint, in its order.

    Beside it lies `first`, which is the run as it was before that.
    """
    folder = tmp_path_factory.mktemp("peaceful")
    latents, run = folder / "latents", folder / "run"
    write_latents(latents)
    train_small(latents, run, *SETTINGS, f"train.samples={BATCH}")
    shutil.copytree(run, folder / "first")
    written: Writes = []
    write = Prefix.write

    def noting(self: Prefix, name: str, content: bytes | memoryview) -> None:
        place = Path(self.path(name)).relative_to(run).as_posix()
        if place.startswith(SECOND) or (written and place == "latest"):
            written.append((place, bytes(content)))
        write(self, name, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prefix, "write", noting)
        train_small(latents, run, *SETTINGS, f"train.samples={KILLED_AT}")
    train_small(latents, run, *SETTINGS, f"train.samples={SAMPLES}")
    return latents, run, written


def offsets(written: Writes) -> list[int]:
    """Before the first byte, around the last one of the record that commits, and anywhere."""
    committed = sum(len(content) for place, content in written if place != "latest")
    chance = random.Random(0)
    anywhere = (chance.randrange(committed) for _ in range(KILLS - 3))
    return sorted([0, committed - 1, committed, *anywhere])


def killed_at(first: Path, written: Writes, offset: int) -> Callable[[Path], None]:
    """Puts a run there as it is if the process dies when so many bytes are written.

    The file in the middle is cut: a store that shows less than whole files is the worst case.
    """

    def make(run: Path) -> None:
        shutil.copytree(first, run)
        left = offset
        for place, content in written:
            if left > 0:
                (run / place).parent.mkdir(parents=True, exist_ok=True)
                (run / place).write_bytes(content[:left])
                left -= len(content)

    return make


def test_killed_at_any_byte_training_goes_on_to_the_same_end(
    peaceful: tuple[Path, Path, Writes], tmp_path: Path
) -> None:
    latents, undisturbed, written = peaceful
    assert [Path(place).name.partition("-")[0] for place, _ in written] == [
        "model",
        "ema",
        "optimizer",
        "commit.json",
        "latest",
    ]
    wanted, lines = checkpoint_of(undisturbed), read_metrics(open_prefix(str(undisturbed), "out"))
    begun = []
    for number, offset in enumerate(offsets(written)):
        run = tmp_path / str(number)
        killed_at(undisturbed.parent / "first", written, offset)(run)
        there = latest_checkpoint(open_prefix(str(run), "out"))
        assert there is not None
        begun.append(there.progress.samples_seen)
        train_small(latents, run, *SETTINGS, f"train.samples={SAMPLES}")
        got = checkpoint_of(run)
        assert got.progress == wanted.progress
        assert_same_state(got, wanted)
        assert_equal(adam_moments(got), adam_moments(wanted))
        losses = [line["loss"] for line in read_metrics(open_prefix(str(run), "out"))]
        assert losses[-1] == lines[-1]["loss"]
        shutil.rmtree(run)
    assert begun == sorted(begun)
    assert len(begun) == KILLS and set(begun) == {BATCH, KILLED_AT}
