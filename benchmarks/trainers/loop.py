"""The same small UNet stepped bare and by `ldm train`, on one process or two ranks.

    python -m benchmarks.trainers.loop KIND FOLDER [BATCH STEPS]

KIND is deepspeed (Accelerate's plugin as it comes, stage 2), an engine of `ldm train`, or both:
some steps bare and some of `ldm train` in turn in one process, since two processes differ by more
than what a loop costs.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.loaders.latent_foundry import write
from benchmarks.loaders.payload import SHAPES
from conf.compose import compose_config
from conf.groups import UNetConfig
from data.storage import open_prefix
from training.device import keep_freed_memory
from training.diffuse import train_denoiser
from training.models.unet import UNet
from training.tracking.files import read_metrics

DATA = "16 KB"
BATCH = 16  # over all ranks
WARM_UP, STEPS = 3, 20
TURNS, STEPS_A_TURN = 8, 5
SIZES: dict[str, Any] = {
    "channels": 64,
    "channel_mult": [1, 2, 4],
    "res_blocks": 2,
    "attention_levels": [1, 2],
    "head_channels": 32,
    "norm_groups": 32,
}


def is_main() -> bool:
    """Whether this rank tells what was found."""
    return os.environ.get("RANK", "0") == "0"


def latents_of(folder: Path) -> Path:
    """The dataset, made if it is not there."""
    place = folder / "latents"
    if not (place / "manifest.json").exists():
        shutil.rmtree(place, ignore_errors=True)
        with contextlib.redirect_stdout(sys.stderr):
            write(place, argparse.Namespace(kind=DATA))
    return place


def ldm_train(kind: str, folder: Path, count: int = STEPS, batch: int = BATCH) -> list[float]:
    """Seconds of steps of `ldm train`, from its metrics; on rank 0."""
    # Of this launch alone: a quick rank could see an old one before the first rank removes it.
    out = folder / f"run-{os.environ.get('TORCHELASTIC_RUN_ID', os.getpid())}"
    settings = [f"unet.{name}={value}" for name, value in SIZES.items()]
    steps = WARM_UP + count
    arguments = [
        f"data.url={latents_of(folder)}",
        f"out={out}",
        f"engine={kind}",
        "engine.precision=fp32",
        f"batch_size={batch}",
        f"train.samples={steps * batch}",
        f"checkpoint.every_samples={10 * steps * batch}",
        f"tracking.log_every_samples={batch}",
        "tracking.kind=off",
        *settings,
    ]
    with contextlib.redirect_stdout(sys.stderr):
        train_denoiser(compose_config("train", [one.replace(" ", "") for one in arguments]))
    if not is_main():
        return []
    lines = read_metrics(open_prefix(str(out), "out"))[WARM_UP:]
    shutil.rmtree(out)
    return [batch / line["images_per_second"] for line in lines]


def by_hand(kind: str, count: int = STEPS, batch: int = BATCH) -> list[float]:
    """Seconds of steps of a loop that has its batch already."""
    keep_freed_memory()
    torch.manual_seed(0)
    (channels, side, _), (tokens, width) = SHAPES[DATA]
    latents, ranks = channels // 2, int(os.environ.get("WORLD_SIZE", "1"))
    model: Any = UNet(UNetConfig(**SIZES), latents, width)
    micro = batch // ranks
    noisy, target = (torch.randn(micro, latents, side, side) for _ in range(2))
    timesteps = torch.randint(0, 1000, (micro,))
    captions, mask = torch.randn(micro, tokens, width), torch.ones(micro, tokens, dtype=torch.bool)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    backward = torch.Tensor.backward
    if kind == "deepspeed":
        accelerator = _accelerator(micro)
        model, optimizer = accelerator.prepare(model, optimizer)
        backward = accelerator.backward
    seconds = []
    for _ in range(WARM_UP + count):
        began = time.perf_counter()
        output = model(noisy, timesteps, captions, mask)
        backward(torch.nn.functional.mse_loss(output, target))
        if kind == "bare":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return seconds[WARM_UP:]


def in_turn(folder: Path) -> dict[str, list[float]]:
    """Seconds of steps of both, a few at a time."""
    found: dict[str, list[float]] = {"bare": [], "single": []}
    for _ in range(TURNS):
        found["bare"] += by_hand("bare", STEPS_A_TURN)
        found["single"] += ldm_train("single", folder, STEPS_A_TURN)
    return found


def _accelerator(batch: int) -> Any:
    """Accelerate with DeepSpeed as its guide has it, but for what a CPU needs to run at all."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"}
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

    plugin = DeepSpeedPlugin(zero_stage=2, gradient_clipping=1.0)
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = batch
    plugin.deepspeed_config["zero_force_ds_cpu_optimizer"] = False
    return Accelerator(
        deepspeed_plugin=plugin, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")]
    )


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind == "both":
        latents_of(folder)
        told = in_turn(folder)
    else:
        batch, count = (int(number) for number in sys.argv[3:] or (BATCH, STEPS))
        if kind == "deepspeed":
            steps = by_hand(kind, count, batch)
        else:
            steps = ldm_train(kind, folder, count, batch)
        told = {"seconds": statistics.median(steps) if is_main() else None}
    if is_main():
        print(json.dumps(told))
