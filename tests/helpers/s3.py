"""A real S3 server on this machine, for tests whose claim is about object storage.

Owns the SeaweedFS process and the environment that points clients at it. Emulates nothing.
"""

import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.helpers.processes import (
    free_ports,
    installed_script,
    kill_process,
    log_tail,
    start_process,
)

_ACCESS_KEY = "latent-foundry"
_SECRET_KEY = "secret-of-the-tests"
_REGION = "us-east-1"
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": _ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": _SECRET_KEY,
    "AWS_DEFAULT_REGION": _REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}
_START_LIMIT = 60.0  # seconds; 2.5 is usual
_PORT_FLAGS = (
    "s3.port",
    "s3.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "master.port",
    "master.port.grpc",
)


@dataclass(frozen=True, slots=True)
class SeaweedFS:
    """A running server."""

    process: subprocess.Popen[bytes]
    ports: list[int]  # in the order of _PORT_FLAGS
    address: str = "127.0.0.1"

    @property
    def endpoint_url(self) -> str:
        return f"http://{self.address}:{self.ports[0]}"

    @property
    def web_url(self) -> str:
        """Where plain HTTP finds all buckets, below `buckets/`."""
        return f"http://{self.address}:{self.ports[2]}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes every AWS client of this process and its children use this server."""
        return {"AWS_ENDPOINT_URL": self.endpoint_url, **_CREDENTIALS}

    def create_bucket(self, name: str) -> None:
        _client(self.endpoint_url).create_bucket(Bucket=name)

    def stop(self) -> None:
        """Kills the server; a second call does nothing."""
        kill_process(self.process)
        # The server makes these beside its ports, whatever folder it is given.
        for port in self.ports:
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink(missing_ok=True)


def start_seaweedfs(folder: Path, memory: str = "256MiB", address: str = "127.0.0.1") -> SeaweedFS:
    """Starts a server that keeps its data and its log in `folder`; returns once it serves.

    Args:
        folder: Empty.
        memory: What the server tries to stay within; without it, it keeps some 700 MB after one
            object of 100 MB.
        address: Of this machine, where it is reached.

    Raises:
        RuntimeError: The server ended, or did not serve in time; with the end of its log.
    """
    data, log = folder / "data", folder / "weed.log"
    data.mkdir()
    ports = free_ports(len(_PORT_FLAGS))
    environment = {**_CREDENTIALS, "GOMEMLIMIT": memory}
    process = start_process(_command(data, ports, address), log, environment)
    server = SeaweedFS(process, ports, address)
    try:
        _wait_until_it_serves(server, log)
    except BaseException:
        server.stop()
        raise
    return server


def _command(data: Path, ports: list[int], address: str) -> list[str]:
    return [
        installed_script("weed"),
        "-logtostderr=true",  # or it also leaves log files in /tmp
        "server",
        f"-dir={data}",
        f"-ip={address}",
        "-s3",
        *(f"-{flag}={port}" for flag, port in zip(_PORT_FLAGS, ports, strict=True)),
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-volume.max=100",  # every bucket takes several
        "-master.peers=none",  # a single master need not hold an election: 2.5 s instead of 8
        "-master.telemetry=false",
    ]


def _wait_until_it_serves(server: SeaweedFS, log: Path) -> None:
    """The port opens before the first write succeeds, so only a round trip counts."""
    client = _client(server.endpoint_url)
    deadline = time.monotonic() + _START_LIMIT
    while True:
        try:
            return _round_trip(client)
        except (BotoCoreError, ClientError) as error:
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(_describe_failure(server, error, log)) from error
        time.sleep(0.1)


def _describe_failure(server: SeaweedFS, error: Exception, log: Path) -> str:
    code = server.process.returncode
    what = f"no round trip in {_START_LIMIT:.0f} s" if code is None else f"exit code {code}"
    return f"SeaweedFS did not start: {what}; {error}\n{log_tail(log)}"


def _round_trip(client: Any) -> None:
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):  # an earlier trip got that far
        client.create_bucket(Bucket="readiness")
    client.put_object(Bucket="readiness", Key="probe", Body=b"written")
    assert client.get_object(Bucket="readiness", Key="probe")["Body"].read() == b"written"
    client.delete_object(Bucket="readiness", Key="probe")
    client.delete_bucket(Bucket="readiness")


def _client(endpoint_url: str) -> Any:
    return botocore.session.get_session().create_client(
        "s3",
        region_name=_REGION,
        endpoint_url=endpoint_url,
        aws_access_key_id=_ACCESS_KEY,
        aws_secret_access_key=_SECRET_KEY,
        config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}),
    )
