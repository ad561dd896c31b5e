"""What tests of engines and checkpoints begin with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data.storage import Prefix, open_prefix
from tests.helpers.small_engine import small_engine, step
from training.engine.strategy import Engine


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A small one that has made a step."""
    made = small_engine(seed=0)
    step(made)
    yield made
    made.close()


@pytest.fixture
def out(tmp_path: Path) -> Prefix:
    """Where a run is kept."""
    return open_prefix(str(tmp_path / "run"), "out")
