"""Latents on a real S3 server: on loopback, far away, and behind a proxy that fails on purpose."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import obstore
from obstore.store import S3Store

from benchmarks.contestants import (
    LATENT_FOUNDRY,
    LITDATAS,
    MOSAIC,
    WEBDATASETS,
    Contestant,
    prepare,
    read,
)
from benchmarks.loaders.payload import sample_bytes
from benchmarks.tables import median, spread, table
from tests.helpers.faults import Fault, FaultyProxy
from tests.helpers.processes import free_ports
from tests.helpers.s3 import SeaweedFS, start_seaweedfs

KIND = "223 KB"
BUCKET = "benchmark"
WAYS = {"through memory": False, "local cache": True}
RANGE = 8 * 2**20
LATENCY, CONNECTION, LINK = 0.020, 93e6, 400e6  # seconds; bytes a second of one connection and all
REMOTE = (LATENT_FOUNDRY, WEBDATASETS[2], LITDATAS[1], MOSAIC)
FAULTS = {  # a tenth of the requests, and a tenth of the bodies
    Fault.INTERNAL: 0.02,
    Fault.UNAVAILABLE: 0.02,
    Fault.SLOW_DOWN: 0.02,
    Fault.RESET: 0.02,
    Fault.LOST: 0.02,
    Fault.SHORT: 0.03,
    Fault.CUT: 0.04,
    Fault.BROKEN: 0.03,
}


@dataclass(frozen=True, slots=True)
class Store:
    """An S3 server that holds every contestant's samples."""

    server: SeaweedFS
    folder: Path

    def url(self, contestant: Contestant) -> str:
        """Where a contestant reads; webdataset takes what curl can fetch."""
        name = contestant.folder(self.folder, KIND).name
        if contestant in WEBDATASETS:
            return f"{self.server.web_url}/buckets/{BUCKET}/{name}"
        return f"s3://{BUCKET}/{name}"


@contextmanager
def _store(folder: Path) -> Iterator[Store]:
    prepare(folder, REMOTE, [KIND])
    place = folder / "seaweedfs"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    server = start_seaweedfs(place, memory="2GiB")
    try:
        server.create_bucket(BUCKET)
        raw = _raw(server.environment)
        for contestant in REMOTE:
            source = contestant.folder(folder, KIND)
            if contestant in WEBDATASETS:
                names = "\n".join(sorted(file.name for file in source.glob("*.tar")))
                (source / "names.txt").write_text(names)
            for file in source.rglob("*"):
                if file.is_file():
                    obstore.put(raw, f"{source.name}/{file.relative_to(source)}", file)
        yield Store(server, folder)
    finally:
        server.stop()
        shutil.rmtree(place, ignore_errors=True)


def _raw(environment: dict[str, str]) -> S3Store:
    return S3Store(
        BUCKET,
        endpoint=environment["AWS_ENDPOINT_URL"],
        access_key_id=environment["AWS_ACCESS_KEY_ID"],
        secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region=environment["AWS_DEFAULT_REGION"],
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def _raw_rate(store: Store, environment: dict[str, str], threads: int) -> float:
    """Bytes a second of obstore's ranged reads of 8 MB, nothing done with them."""
    raw, name = _raw(environment), LATENT_FOUNDRY.folder(store.folder, KIND).name
    spans = [
        (item["path"], start, min(start + RANGE, item["size"]))
        for page in obstore.list(raw, f"{name}/shards")
        for item in page
        for start in range(0, item["size"], RANGE)
    ]
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        sizes = pool.map(lambda s: len(obstore.get_range(raw, s[0], start=s[1], end=s[2])), spans)
        total = sum(sizes)
    return total / (time.perf_counter() - started)


def _rate(store: Store, contestant: Contestant, cached: bool, environment: dict[str, str]) -> float:
    """Bytes of samples a second in the first pass of a process that has read nothing yet."""
    cache = store.folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    options = ["--seconds=0", *([f"--cache={cache}"] if cached else [])]
    if contestant is LATENT_FOUNDRY:
        options.append("--workers=2")
    place = store.url(contestant)
    figures = read(store.folder, contestant, KIND, *options, place=place, environment=environment)
    return figures["first_pass"] * sample_bytes(KIND)


def loopback(folder: Path, repeats: int) -> str:
    """First passes over S3 on loopback, and what the client alone can do."""
    runs = [(LATENT_FOUNDRY, False), (LATENT_FOUNDRY, True)]
    runs += [(contestant, True) for contestant in REMOTE[1:]]
    rates: dict[str, list[float]] = {"obstore, ranges of 8 MB, nothing decoded": []}
    with _store(folder) as store:
        for _ in range(repeats):
            for contestant, cached in runs:
                name = contestant.name
                if contestant is LATENT_FOUNDRY:
                    name += ", local cache" if cached else ", through memory"
                rate = _rate(store, contestant, cached, store.server.environment)
                rates.setdefault(name, []).append(rate / 1e6)
            raw = max(_raw_rate(store, store.server.environment, n) for n in (4, 8))
            rates["obstore, ranges of 8 MB, nothing decoded"].append(raw / 1e6)
    rows = [[name, spread(values)] for name, values in rates.items()]
    title = f"MB/s of samples in the first pass, {KIND} each, S3 on loopback"
    return table(title, ["loader", "MB/s"], rows)


@contextmanager
def _link(store: Store) -> Iterator[dict[str, str]]:
    """An environment in which the server is far away."""
    (port,) = free_ports(1)
    widths = [str(number) for number in (LATENCY, CONNECTION, LINK)]
    upstream = store.server.environment["AWS_ENDPOINT_URL"]
    command = [sys.executable, "-m", "tests.helpers.link", upstream, str(port), *widths]
    process = subprocess.Popen(command)
    try:
        time.sleep(2)
        yield {**store.server.environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    finally:
        process.kill()
        process.wait()


def far_away(folder: Path, repeats: int) -> str:
    """The same 20 ms away, with 93 MB/s a connection, over a link of a given width."""
    rates: dict[str, list[float]] = {}
    with _store(folder) as store, _link(store) as environment:
        for _ in range(repeats):
            raw = _raw_rate(store, environment, 16)
            rates.setdefault("obstore, 16 ranges of 8 MB in flight", []).append(raw)
            for name, cached in WAYS.items():
                rate = _rate(store, LATENT_FOUNDRY, cached, environment)
                rates.setdefault(f"Latent Foundry, {name}", []).append(rate)
    rows = [
        [name, spread([value / 1e6 for value in values]), f"{median(values) / LINK:.0%}"]
        for name, values in rates.items()
    ]
    title = (
        f"MB/s of samples in the first pass, {KIND} each, S3 {1000 * LATENCY:.0f} ms away, "
        f"{CONNECTION / 1e6:.0f} MB/s a connection, {LINK / 1e6:.0f} MB/s in all"
    )
    return table(title, ["loader", "MB/s", "of the link"], rows)


def faults(folder: Path, repeats: int) -> str:
    """The same behind a proxy, with and without faults."""
    rates: dict[tuple[str, bool], list[float]] = {}
    with _store(folder) as store:
        proxy = FaultyProxy(store.server.environment["AWS_ENDPOINT_URL"], seed=0)
        environment = {**store.server.environment, "AWS_ENDPOINT_URL": proxy.url}
        try:
            for _ in range(repeats):
                for (name, cached), failing in product(WAYS.items(), (False, True)):
                    proxy.shares = FAULTS if failing else {}
                    rate = _rate(store, LATENT_FOUNDRY, cached, environment)
                    rates.setdefault((name, failing), []).append(rate / 1e6)
        finally:
            proxy.stop()
    rows = []
    for name in WAYS:
        steady, failing = rates[name, False], rates[name, True]
        rows.append(
            [name, spread(steady), spread(failing), f"{median(steady) / median(failing):.2f}x"]
        )
    title = "MB/s with 10% of requests failing and 10% of bodies cut, behind a Python proxy"
    return table(title, ["Latent Foundry", "no faults", "faults", "time"], rows)
