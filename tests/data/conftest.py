"""Places and datasets that the tests of this room share."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.helpers.datasets import run_shard, tiny_images, write_images


@pytest.fixture(params=["local", "memory", "s3"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty prefix, once on every kind of storage."""
    match request.param:
        case "local":
            yield str(request.getfixturevalue("tmp_path") / "prefix")
        case "memory":
            name = uuid.uuid4().hex
            yield f"memory://{name}"
            memory = fsspec.filesystem("memory")
            if memory.exists(name):
                memory.rm(name, recursive=True)
        case "s3":
            yield request.getfixturevalue("s3_prefix")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of ten images of 16 pixels with captions."""
    folder = tmp_path / "images"
    tiny_images(folder, 10, 16)
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A dataset of 3 and 2 images."""
    write_images(str(tmp_path / "raw"), 3, 2)
    return tmp_path / "raw"


@pytest.fixture(scope="session")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of a few dozen held-out emoji, eight a shard; not to be changed."""
    out = tmp_path_factory.mktemp("emoji") / "out"
    run_shard(out, *EMOJI)
    return out


EMOJI = ("source.split=held_out", "source.held_out_share=0.01", "shard_samples=8")
