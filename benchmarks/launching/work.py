"""The tiny training that is launched: two small datasets of latents, and its settings."""

import os
import shutil
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

from benchmarks.loaders.latent_foundry import write_samples
from benchmarks.loaders.payload import samples
from benchmarks.programs import ROOT

KIND, COUNT = "16 KB", 256
SETTINGS = (
    *("unet.channels=32", "unet.channel_mult=[1,2]", "unet.res_blocks=1"),
    *("unet.attention_levels=[1]", "unet.head_channels=16", "unet.norm_groups=8"),
    *("batch_size=8", "engine.precision=fp32", "tracking.kind=off"),
)


def data_of(folder: Path) -> tuple[Path, Path]:
    """Latents to train on and others held out, made if they are not there."""
    places = folder / "latents", folder / "held_out"
    for number, place in enumerate(places):
        if not (place / "manifest.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            numbered = islice(samples(KIND), number * COUNT, (number + 1) * COUNT)
            write_samples(place, KIND, numbered)
    return places


def seconds_of(folder: Path, *arguments: str, **environment: str) -> float:
    """Seconds of `ldm ARGUMENTS` as a whole process, which has to succeed."""
    paths = [*filter(None, [environment.pop("PYTHONPATH", "")]), str(ROOT)]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments],
        cwd=folder,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    taken = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"ldm {' '.join(arguments)}: {done.returncode}\n{done.stderr}")
    return taken
