"""Places and datasets that the tests of this room share."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from s3fs import S3FileSystem

from tests.helpers.datasets import run_shard, tiny_images, write_images
from tests.helpers.faults import FaultyProxy


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
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy that every S3 file system opened from now on goes through."""
    proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"], seed=0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    S3FileSystem.clear_instance_cache()  # they hold clients of the server itself
    yield proxy
    S3FileSystem.clear_instance_cache()
    proxy.stop()


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
