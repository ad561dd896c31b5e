from pathlib import Path

import pytest

from tests.helpers.latents import SQUARE, write_latents


@pytest.fixture(scope="session")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 37 latents of two sizes in two shards: no epoch ends where a batch does."""
    folder = tmp_path_factory.mktemp("latents")
    write_latents(folder, buckets=(SQUARE, (48, 80)))
    return folder
