"""A small dataset of images, an autoencoder of one step, and their latents."""

from pathlib import Path

import pytest

from tests.helpers.caches import run_cache, train_small
from tests.helpers.datasets import run_shard


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few dozen emoji of 16 pixels in shards of eight; not to be changed."""
    out = tmp_path_factory.mktemp("cache") / "images"
    run_shard(
        out, "source.split=held_out", "source.held_out_share=0.01", "shard_samples=8", "size=16"
    )
    return out


@pytest.fixture(scope="session")
def autoencoder(images: Path) -> Path:
    """A run of `ldm autoencoder`, one step long; not to be changed."""
    return train_small(images, images.parent / "autoencoder", seed=0)


@pytest.fixture(scope="session")
def cache(images: Path, autoencoder: Path) -> Path:
    """The latents of the images; not to be changed."""
    out = images.parent / "latents"
    run_cache(images, autoencoder, out)
    return out
