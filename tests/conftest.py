"""Fixtures for every test."""

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.helpers.s3 import start_seaweedfs


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
