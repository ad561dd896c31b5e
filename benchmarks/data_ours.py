"""What only we promise: resume at any place, an order of a billion samples; and `ldm shard`."""

import io
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import LATENT_FOUNDRY, ROOT, many_shards, prepare
from benchmarks.loaders.payload import BATCH
from benchmarks.tables import median, spread, table
from conf.groups import DataConfig
from data.collate import latent_batch
from data.corpus import open_corpus
from data.image import encode_jpeg
from data.loader import Loader
from data.order import Order

KIND = "223 KB"
SHARDS = 10_000
PLACES = (0.0, 0.1, 0.5, 0.9, 0.999)
SAMPLES_OF_A_SHARD = 8192
IMAGES, IMAGES_OF_A_TAR = 600, 75


def resume(folder: Path, repeats: int) -> str:
    """Seconds from a place to the first batch, everything opened anew, on a large dataset."""
    prepare(folder, [LATENT_FOUNDRY], [KIND])
    url = str(many_shards(folder, SHARDS))
    seconds: dict[float, list[float]] = {place: [] for place in PLACES}
    opened: dict[float, int] = {}
    opening: list[float] = []
    for _ in range(repeats):
        for place in PLACES:
            began = time.perf_counter()
            corpus = open_corpus(DataConfig(url=url), "latents", BATCH)
            opening.append(time.perf_counter() - began)
            loader = Loader(corpus, latent_batch, BATCH, BATCH, 0, 1, 2)
            start = int(place * corpus.samples) // BATCH * BATCH
            began = time.perf_counter()
            loader.load_state_dict({"place": start})
            next(loader)
            seconds[place].append(time.perf_counter() - began)
            opened[place] = corpus.main.open_shard.cache_info().currsize
            loader.close()
    samples = corpus.samples
    rows = [
        [
            f"{place:.1%} of an epoch",
            spread([1e3 * s for s in seconds[place]], 1),
            str(opened[place]),
        ]
        for place in PLACES
    ]
    title = (
        f"Milliseconds from a state to the first batch: {samples:,} samples in {SHARDS:,} shards "
        f"(manifest opened and checked before in {1e3 * median(opening):,.0f} ms)"
    )
    return table(title, ["resumed at", "ms", "shards open by then"], rows)


def order(folder: Path, repeats: int) -> str:
    """Time and memory of one rank's order, and how they grow."""
    rows = []
    for samples in (10**6, 10**7, 10**8, 10**9):
        runs = [_in_a_process(_plan, samples) for _ in range(repeats)]
        figures = {name: median([run[name] for run in runs]) for name in runs[0]}
        rows.append(
            [
                f"{samples:,}",
                f"{figures['build']:.1f}",
                f"{figures['first']:.1f}",
                f"{figures['later']:.0f}",
                f"{figures['memory'] / 1e6:.1f}",
            ]
        )
    title = f"The order of one rank, shards of {SAMPLES_OF_A_SHARD:,}, blocks of 16 shards"
    columns = ["samples", "building, ms", "first batch at 90%, ms", "a batch, µs", "memory, MB"]
    return table(title, columns, rows)


def _plan(samples: int) -> dict[str, float]:
    """Build an order and walk through two blocks of it from 90% of an epoch on."""
    counts = np.full(samples // SAMPLES_OF_A_SHARD, SAMPLES_OF_A_SHARD)
    before = _peak_memory()
    began = time.perf_counter()
    planned = Order(counts, 0, 16)
    built = time.perf_counter()
    start = int(0.9 * planned.epoch_samples)
    planned.samples(start, start + BATCH)
    first = time.perf_counter()
    batches = 2 * 16 * SAMPLES_OF_A_SHARD // BATCH
    for number in range(1, batches + 1):
        planned.samples(start + number * BATCH, start + (number + 1) * BATCH)
    later = time.perf_counter()
    return {
        "build": 1e3 * (built - began),
        "first": 1e3 * (first - built),
        "later": 1e6 * (later - first) / batches,
        "memory": _peak_memory() - before,
    }


def _peak_memory() -> float:
    """Bytes that this process had at most; what the system counts as its children's is more."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024.0 * int(found[1])


def _in_a_process(function: Callable[[int], Any], argument: int) -> Any:
    """A result of a process that has done nothing before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (argument,))


def shard(folder: Path, repeats: int) -> str:
    """Images a second of `ldm shard` on tars as img2dataset makes them, and bytes a sample."""
    source = folder / f"img2dataset-{IMAGES}"
    if not source.exists():
        _write_tars(source)
    coming = sum(file.stat().st_size for file in source.glob("*.tar")) / IMAGES
    ways = {
        "resized to 256, JPEG": ["size=256", "format=jpeg", "processes=1"],
        "the same, two processes": ["size=256", "format=jpeg", "processes=2"],
        "resized to 256, PNG, two processes": ["size=256", "processes=2"],
        "resized to 256, WebP, two processes": ["size=256", "format=webp", "processes=2"],
        "in place, two processes": ["source.in_place=true", "size=256", "processes=2"],
        "in place and decoded, two processes": [
            "source.in_place=true", "source.check=true", "size=256", "processes=2",
        ],
    }  # fmt: skip
    rates: dict[str, list[float]] = {way: [] for way in ways}
    sizes: dict[str, float] = {}
    out = folder / "sharded"
    for _ in range(repeats):
        for way, settings in ways.items():
            shutil.rmtree(out, ignore_errors=True)
            command = ["shard", "source=webdataset", f"source.path={source}", f"out={out}"]
            if "source.in_place=true" not in settings:  # or all of them would be one shard
                command.append(f"shard_samples={IMAGES_OF_A_TAR}")
            done = subprocess.run(
                [sys.executable, "-m", "launch.cli", *command, *settings],
                cwd=ROOT, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            (summary,) = json.loads((out / "summary.json").read_text())
            rates[way].append(summary["samples"] / summary["seconds"])
            files = (file for file in out.rglob("*") if file.is_file())
            sizes[way] = sum(file.stat().st_size for file in files) / IMAGES
    rows = [[way, spread(rates[way]), f"{sizes[way]:,.0f}"] for way in ways]
    title = (
        f"`ldm shard` of {IMAGES:,} JPEG images of 512 x 640 in tars, {coming:,.0f} bytes a sample"
    )
    return table(title, ["", "images/s", "bytes a sample written"], rows)


def _write_tars(folder: Path) -> None:
    """Images whose spectrum falls as that of photographs, with captions and json."""
    making = folder.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for first in range(0, IMAGES, IMAGES_OF_A_TAR):
        with tarfile.open(making / f"{first // IMAGES_OF_A_TAR:05d}.tar", "w") as archive:
            for number in range(first, first + IMAGES_OF_A_TAR):
                meta = {"key": f"{number:09d}", "width": 640, "height": 512}
                members = {
                    "jpg": encode_jpeg(_picture(number), 90),
                    "txt": f"picture number {number}".encode(),
                    "json": json.dumps(meta).encode(),
                }
                for extension, content in members.items():
                    item = tarfile.TarInfo(f"{number:09d}.{extension}")
                    item.size = len(content)
                    archive.addfile(item, io.BytesIO(content))
    making.rename(folder)


def _picture(number: int) -> Any:
    """uint8, (512, 640, 3); amplitudes fall with the frequency."""
    chance = np.random.default_rng(number)
    across = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(640)) + 1 / 640
    phases = np.exp(2j * np.pi * chance.random((3, *across.shape)))
    waves = np.fft.irfft2(phases / across, s=(512, 640))
    colours = waves[0] + 0.3 * waves
    return np.clip(128 + 50 * colours / colours.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)
