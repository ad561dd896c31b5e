"""The cache stage: beside a loop as one writes it, on two ranks, and its bytes a sample.

    python -m benchmarks.cache                      # everything, half an hour on two cores
    python -m benchmarks.cache rate ranks           # some of it
    python -m benchmarks.cache --repeats 5 --keep   # also into docs/results.md

Sections: rate (the whole of `ldm cache`, a sequential loop, and the encoders alone), ranks (two
processes of one thread each beside one), bytes (of every layout).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.encoders.work import CASES, autoencoder_of, images_of, make_work
from benchmarks.tables import keep, median, spread, table

PROGRAMS = {
    "Latent Foundry, `ldm cache`": "latent_foundry",
    "diffusers and transformers, one thing after another": "sequential",
    "the encoders alone": "bare",
}
# Of Stable Diffusion 2.x at 512 pixels: latents 4 x 64 x 64, text 77 x 1024.
MLPERF_BYTES = 446_464


def rate(folder: Path, repeats: int) -> str:
    """Images a second of everybody, interleaved."""
    tables = []
    for case, told in CASES.items():
        make_work(folder, case)
        rates: dict[str, list[float]] = {name: [] for name in PROGRAMS}
        for _ in range(repeats):
            for name, module in PROGRAMS.items():
                rates[name].append(_program(folder, case, module))
                print(f"{told.name}: {name}: {rates[name][-1]:.2f} images/s", flush=True)
        ours, loop, bare = (median(values) for values in rates.values())
        rows = [[name, spread(values, 2)] for name, values in rates.items()]
        rows.append(["share of the encoders alone", f"{ours / bare:.1%}"])
        rows.append(["times the loop", f"{ours / loop:.2f}"])
        title = f"{told.name}: {told.images} images, {told.batch} at once, two threads"
        tables.append(table(title, ["", "images/s"], rows))
    return "\n".join(tables)


def ranks(folder: Path, repeats: int) -> str:
    """One process of one thread, and two of one thread each."""
    make_work(folder, "sd")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for count in seconds:
            seconds[count].append(_ranks(folder, count))
            print(f"{count} ranks: {seconds[count][-1]:.1f} s", flush=True)
    one, two = median(seconds[1]), median(seconds[2])
    rows = [[f"{count} of one thread each", spread(values, 1)] for count, values in seconds.items()]
    rows.append(["times as fast", f"{one / two:.2f}"])
    told = CASES["sd"]
    title = f"{told.name}: {told.images} images, from the start of the processes to their end"
    return table(title, ["ranks", "seconds"], rows)


def _program(folder: Path, case: str, module: str) -> float:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", f"benchmarks.encoders.{module}", folder, case, out]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["samples"] != CASES[case].images:
        raise SystemExit(f"{module} encoded {found['samples']} of {CASES[case].images} images")
    return found["samples"] / found["seconds"]


def _ranks(folder: Path, count: int) -> float:
    """Seconds of `ldm cache` on so many ranks, less what each takes to start and to end."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    settings = [
        f"data.url={images_of(folder, 'sd')}",
        "autoencoder=pretrained",
        f"autoencoder.path={autoencoder_of(folder, 'sd')}",
        f"micro_batch_size={CASES['sd'].batch}",
        f"out={out}",
        f"world_size={count}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "launch.cli", "cache", *settings, f"rank={rank}"],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for rank in range(count)
    ]
    if any([process.wait() for process in running]):
        raise SystemExit("a rank failed")
    return time.perf_counter() - began


SECTIONS: dict[str, Callable[[Path, int], str]] = {"rate": rate, "ranks": ranks}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], default=[])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each program")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/latent-foundry-cache"))
    parser.add_argument("--keep", action="store_true", help="write the tables to docs/results.md")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.sections or SECTIONS:
        text = SECTIONS[name](options.folder, options.repeats)
        print(f"\n{text}", flush=True)
        if options.keep:
            keep(f"cache {name}", text)


if __name__ == "__main__":
    main()
