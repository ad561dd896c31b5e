"""`ldm train` on cached latents, as it comes.

    python -m benchmarks.gpus.ours CASE FOLDER WAY

WAY is plain, compiled (engine.compile=true), or saving (a checkpoint every 100 steps).
"""

import contextlib
import json
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpus.work import ATTENTION_LEVELS, CASES, CHANNEL_MULT, TOKENS, WIDTH, Case
from conf.compose import compose_config
from conf.enums import Precision
from data.arrays import dump_array
from data.manifest import EMPTY_TEXT, Manifest, sha256
from data.sample import META, MOMENTS, TEXT, RawSample
from data.shard import begin_dataset, commit_dataset, commit_shard
from data.spec import LatentSpec, TextSpec
from data.storage import open_prefix
from training.device import pick_device
from training.diffuse import train_denoiser
from training.perf import device_peak, measured_peak
from training.tracking.files import read_metrics

SAMPLES, SHARDS = 512, 4
SAVING_EVERY = 100  # steps


def write_latents(place: Path, case: Case) -> None:
    """A dataset of random latents and captions; nothing if it is there."""
    out = open_prefix(str(place), "out")
    if out.exists("manifest.json"):
        return
    chance = np.random.default_rng(0)
    shape, text = (8, case.places, case.places), (TOKENS, WIDTH)

    def numbers(*sizes: int) -> bytes:
        return dump_array(chance.standard_normal(sizes, dtype=np.float32).astype(np.float16))

    begin_dataset(out, {"kind": "latents"})
    entries = []
    for shard in range(SHARDS):
        some = [
            RawSample(
                f"{shard}-{number:05d}",
                {MOMENTS: numbers(*shape), TEXT: numbers(*text), META: b"{}"},
            )
            for number in range(SAMPLES // SHARDS)
        ]
        entries.append(commit_shard(out, f"{shard:05d}", some, (MOMENTS, TEXT, META), 1))
    empty = numbers(*text)
    out.write(EMPTY_TEXT, empty)
    ones = (1.0,) * 4
    pixels = 8 * case.places
    manifest = Manifest(
        kind="latents",
        buckets=((pixels, pixels),),
        members=(MOMENTS, TEXT, META),
        shards=tuple(entry.shard for entry in entries),
        identity="of a benchmark",
        settings={},
        latents=LatentSpec(4, case.places, 8, "float16", "none", *[ones] * 4),
        text=TextSpec("none", WIDTH, TOKENS, "float16", sha256(empty)),
    )
    commit_dataset(out, manifest)


def main(name: str, folder: Path, way: str) -> None:
    """Prints one line of JSON."""
    case = CASES[name]
    data, out = folder / f"latents-{name}", folder / f"run-{name}-{way}"
    shutil.rmtree(out, ignore_errors=True)
    steps = case.warm_up + case.steps * (5 if way == "saving" else 1)
    settings = {
        "data.url": data,
        "out": out,
        "unet.channels": case.channels,
        "unet.channel_mult": list(CHANNEL_MULT),
        "unet.attention_levels": list(ATTENTION_LEVELS),
        "unet.head_channels": case.head_channels,
        "engine": "single",
        "engine.compile": str(way == "compiled").lower(),
        "batch_size": case.batch,
        "train.samples": steps * case.batch,
        "checkpoint.every_samples": (SAVING_EVERY if way == "saving" else 10 * steps) * case.batch,
        "tracking.log_every_samples": case.batch,
        "tracking.kind": "off",
    }
    with contextlib.redirect_stdout(sys.stderr):
        write_latents(data, case)
        told = [f"{name}={value}".replace(" ", "") for name, value in settings.items()]
        train_denoiser(compose_config("train", told))
    lines = read_metrics(open_prefix(str(out), "out"))[case.warm_up : -1]
    device = pick_device()
    speeds = [line["images_per_second"] for line in lines]
    peak = device_peak(device, Precision.bf16)
    found = {
        # Of all steps together: the mean of the times, so that a step that saves counts.
        "images_per_second": 1 / statistics.mean(1 / speed for speed in speeds),
        "mfu": statistics.median(line["mfu"] for line in lines),
        "waiting": statistics.median(line["waiting_share"] for line in lines),
        "memory": max(line.get("peak_device_memory", line["peak_memory"]) for line in lines),
        "peak": peak.flops,
        "peak_source": peak.source,
        "product": measured_peak(device, torch.bfloat16),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
