"""Latents on a real S3 server: on loopback, far away, and behind a proxy that fails on purpose."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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
    many_shards,
    prepare,
    read,
)
from benchmarks.loaders.payload import sample_bytes
from benchmarks.tables import median, spread, table
from tests.helpers.faults import A_TENTH_AND_A_TENTH, FaultyProxy
from tests.helpers.processes import free_ports
from tests.helpers.s3 import SeaweedFS, start_seaweedfs

KIND = "223 KB"
BUCKET = "benchmark"
LONG = 56  # shards of a dataset that is long enough for its beginning not to count
WAYS: dict[str, tuple[str, ...]] = {
    "whole shards in memory": (),
    "local cache": (),
    "a request a sample": ("--memory=0",),
}
RANGE = 8 * 2**20
LATENCY, CONNECTION, LINK = 0.020, 93e6, 400e6  # seconds; bytes a second of one connection and all
REMOTE = (LATENT_FOUNDRY, WEBDATASETS[2], LITDATAS[1], MOSAIC)


@dataclass(frozen=True, slots=True)
class Store:
    """An S3 server with the contestants' samples, or with a long dataset of ours."""

    server: SeaweedFS
    folder: Path

    def url(self, contestant: Contestant) -> str:
        """Where a contestant reads; webdataset takes what curl can fetch."""
        name = contestant.folder(self.folder, KIND).name
        if contestant in WEBDATASETS:
            return f"{self.server.web_url}/buckets/{BUCKET}/{name}"
        return f"s3://{BUCKET}/{name}"


@contextmanager
def _store(folder: Path, sources: Sequence[Path]) -> Iterator[Store]:
    """A server that holds these folders."""
    place = folder / "seaweedfs"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    server = start_seaweedfs(place, memory="2GiB")
    try:
        server.create_bucket(BUCKET)
        raw = _raw(server.environment)
        for source in sources:
            names = "\n".join(sorted(file.name for file in source.glob("*.tar")))
            obstore.put(raw, f"{source.name}/names.txt", names.encode())
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


def _raw_rate(environment: dict[str, str], name: str, length: int, threads: int) -> float:
    """Bytes a second of obstore's ranged reads of our shards, nothing done with them."""
    raw = _raw(environment)
    spans = [
        (item["path"], start, min(start + length, item["size"]))
        for page in obstore.list(raw, f"{name}/shards")
        for item in page
        for start in range(0, item["size"], length)
    ]
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        sizes = pool.map(lambda s: len(obstore.get_range(raw, s[0], start=s[1], end=s[2])), spans)
        total = sum(sizes)
    return total / (time.perf_counter() - started)


def _rate(
    store: Store,
    environment: dict[str, str],
    contestant: Contestant = LATENT_FOUNDRY,
    place: str = "",
    way: str = "local cache",
) -> float:
    """Bytes of samples a second in the first pass of a process that has read nothing yet."""
    cache = store.folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    options = ["--seconds=0", *WAYS[way]]
    if way == "local cache":
        options.append(f"--cache={cache}")
    if contestant is LATENT_FOUNDRY:
        options.append("--workers=2")
    figures = read(
        store.folder,
        contestant,
        KIND,
        *options,
        place=place or store.url(contestant),
        environment=environment,
    )
    return figures["first_pass"] * sample_bytes(KIND)


def loopback(folder: Path, repeats: int) -> str:
    """First passes over S3 on loopback, and what the client alone can do."""
    prepare(folder, REMOTE, [KIND])
    rates: dict[str, list[float]] = {}
    with _store(folder, [one.folder(folder, KIND) for one in REMOTE]) as store:
        environment = store.server.environment
        name = LATENT_FOUNDRY.folder(folder, KIND).name
        for _ in range(repeats):
            for length, words in ((RANGE, "8 MB"), (sample_bytes(KIND), "a sample")):
                raw = max(_raw_rate(environment, name, length, n) for n in (4, 16))
                rates.setdefault(f"obstore, ranges of {words}, not decoded", []).append(raw)
            for way in WAYS:
                rate = _rate(store, environment, way=way)
                rates.setdefault(f"Latent Foundry, {way}", []).append(rate)
            for contestant in REMOTE[1:]:
                rate = _rate(store, environment, contestant)
                rates.setdefault(contestant.name, []).append(rate)
    rows = [[name, spread([rate / 1e6 for rate in values])] for name, values in rates.items()]
    title = (
        f"MB/s of samples in the first pass, {KIND} each, S3 on loopback, "
        "everything in one process (ours with two threads)"
    )
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
    """A long dataset 20 ms away, with 93 MB/s a connection, over a link of a given width."""
    prepare(folder, [LATENT_FOUNDRY], [KIND])
    source = many_shards(folder, LONG)
    rates: dict[str, list[float]] = {}
    with _store(folder, [source]) as store, _link(store) as environment:
        place = f"s3://{BUCKET}/{source.name}"
        for _ in range(repeats):
            raw = _raw_rate(environment, source.name, RANGE, 16)
            rates.setdefault("obstore, 16 ranges of 8 MB in flight", []).append(raw)
            for way in WAYS:
                rate = _rate(store, environment, place=place, way=way)
                rates.setdefault(f"Latent Foundry, {way}", []).append(rate)
    rows = [
        [name, spread([value / 1e6 for value in values]), f"{median(values) / LINK:.0%}"]
        for name, values in rates.items()
    ]
    title = (
        f"MB/s of samples in the first pass, {KIND} each, {LONG} shards of 64 MB, "
        f"S3 {1000 * LATENCY:.0f} ms away, {CONNECTION / 1e6:.0f} MB/s a connection, "
        f"{LINK / 1e6:.0f} MB/s in all"
    )
    return table(title, ["loader", "MB/s", "of the link"], rows)


def faults(folder: Path, repeats: int) -> str:
    """The same behind a proxy, with and without faults."""
    prepare(folder, [LATENT_FOUNDRY], [KIND])
    rates: dict[tuple[str, bool], list[float]] = {}
    with _store(folder, [LATENT_FOUNDRY.folder(folder, KIND)]) as store:
        proxy = FaultyProxy(store.server.environment["AWS_ENDPOINT_URL"], seed=0)
        environment = {**store.server.environment, "AWS_ENDPOINT_URL": proxy.url}
        try:
            for _ in range(repeats):
                for way, failing in product(WAYS, (False, True)):
                    proxy.shares = A_TENTH_AND_A_TENTH if failing else {}
                    rate = _rate(store, environment, way=way)
                    rates.setdefault((way, failing), []).append(rate / 1e6)
        finally:
            proxy.stop()
    rows = []
    for way in WAYS:
        steady, failing = rates[way, False], rates[way, True]
        rows.append(
            [way, spread(steady), spread(failing), f"{median(steady) / median(failing):.2f}x"]
        )
    title = "MB/s with 10% of requests failing and 10% of bodies cut, behind a Python proxy"
    return table(title, ["Latent Foundry", "no faults", "faults", "time"], rows)
