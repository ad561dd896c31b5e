"""Fixtures for every test."""

import gc
import os
import uuid
from collections.abc import Generator, Iterator

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of several processes
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from s3fs import S3FileSystem

from tests.helpers.faults import FaultyProxy
from tests.helpers.s3 import start_seaweedfs
from training.models.operators import define_missing_operators

define_missing_operators()  # tests import transformers and diffusers themselves


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run whole commands come first: no process is left alone with one at the end."""
    items.sort(key=lambda item: not {"integration", "distributed"} & {*item.path.parts})


def pytest_collection_finish() -> None:
    """What is imported by now stays: a collection, as each engine ends with, need not walk it."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI no test of a real part may be missing without a word: what it needs is installed."""
    report = yield
    missing = report.skipped and not hasattr(report, "wasxfail")
    if missing and "LDM_NO_SKIPS" in os.environ and "integration" in item.path.parts:
        report.outcome = "failed"
        report.longrepr = f"skipped, and LDM_NO_SKIPS is set: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Torch draws the same numbers in a test whatever ran before it: none fails by bad luck."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket on a real S3 server, as `s3://NAME`, that this process and its children reach."""
    server = start_seaweedfs(tmp_path_factory.mktemp("seaweedfs"))
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    try:
        with pytest.MonkeyPatch.context() as patch:
            # A developer's own profile, token or S3 endpoint would win over what is set here.
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in server.environment.items():
                patch.setenv(name, value)
            server.create_bucket(bucket)
            yield f"s3://{bucket}"
    finally:
        server.stop()


@pytest.fixture
def s3_prefix(s3: str) -> str:
    """A prefix in that bucket that no other test writes to."""
    return f"{s3}/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy that every S3 file system opened from now on, here or in a child, goes through."""
    proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"], seed=0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    S3FileSystem.clear_instance_cache()  # they hold clients of the server itself
    yield proxy
    S3FileSystem.clear_instance_cache()
    proxy.stop()
