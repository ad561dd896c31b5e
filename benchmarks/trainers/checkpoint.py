"""Seconds that training stands still for a checkpoint: ours, torch.save, safetensors, async_save.

    python -m benchmarks.trainers.checkpoint GIGABYTES REPEATS FOLDER

Weights, averages and two moments in float32, one process. Told is by how much the save and the
training step after it together take longer than a step alone: whatever a save does beside the step
counts. Each writes to the same disk, and no save begins before the files of the one before it are
there. The process keeps freed memory, as `ldm train` has it on CPUs: that spares async_save new
pages too.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from conf.enums import Precision
from conf.training import EngineConfig, OptimizerConfig
from data.storage import open_prefix
from training.engine.build import build_engine
from training.engine.checkpoint import Progress
from training.engine.pieces import EMA, pieces_of
from training.engine.retention import Keep
from training.engine.saving import Saver
from training.engine.strategy import Engine

WIDTH, BATCH = 2048, 128
BYTES_PER_PARAMETER = 16

# Called with a new folder; returns what waits until its files are there.
Save = Callable[[Path], Callable[[], object]]


def main(gigabytes: float, repeats: int, folder: Path) -> None:
    """Prints one line of JSON."""
    torch.set_num_threads(1)  # on cores that have other work two would wait for each other
    layers = max(1, round(gigabytes * 1e9 / BYTES_PER_PARAMETER / WIDTH**2))
    network = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
    config = EngineConfig(precision=Precision.fp32)
    engine = build_engine(config, OptimizerConfig(), network, 1, accumulation_steps=1)
    batch = torch.randn(BATCH, WIDTH)

    def step() -> float:
        began = time.perf_counter()
        engine.update([batch], lambda x: {"loss": engine.model(x).square().mean(1)}, lr=1e-6)
        return time.perf_counter() - began

    for _ in range(3):
        step()
    ema = [parameter.detach().clone() for parameter in engine.module.parameters()]
    ours = Saver(open_prefix(str(folder / "ours"), "out"), engine, Keep(1))
    savers = {"Latent Foundry": _ours(ours, engine, ema), **_peers(_state(engine, ema))}
    seconds: dict[str, list[float]] = {name: [] for name in savers}
    whole: dict[str, list[float]] = {name: [] for name in savers}
    steps: list[float] = []
    for number in range(repeats + 1):
        for name, save in savers.items():
            place = folder / f"{name}-{number}".replace(" ", "-")
            place.mkdir(parents=True)
            alone = step()
            began = time.perf_counter()
            wait = save(place)
            step()
            seconds[name].append(time.perf_counter() - began - alone)
            steps.append(alone)
            wait()
            whole[name].append(time.perf_counter() - began)
            shutil.rmtree(place)
    ours.close()
    bytes_saved = BYTES_PER_PARAMETER * layers * WIDTH**2
    # The first one allocates memory that some keep.
    first = {name: values.pop(0) for name, values in seconds.items()}
    for values in whole.values():
        values.pop(0)
    told = {"bytes": bytes_saved, "step": statistics.median(steps)}
    print(json.dumps({**told, "first": first, "seconds": seconds, "whole": whole}))


def _ours(saver: Saver, engine: Engine, ema: list[torch.Tensor]) -> Save:
    saved = 0

    def save(place: Path) -> Callable[[], object]:
        nonlocal saved
        saved += 1
        saver.save(pieces_of(engine, {EMA: ema}), Progress(saved, saved))
        return saver.finish

    return save


def _peers(state: dict[str, torch.Tensor]) -> dict[str, Save]:
    # Pinned memory and copies beside the GPU's work need a GPU.
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=torch.cuda.is_available(),
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=torch.cuda.is_available(),
        )
    )

    def at_once(write: Callable[[Path], object]) -> Save:
        def save(place: Path) -> Callable[[], object]:
            write(place / "file")
            return lambda: None

        return save

    def beside(**options: Any) -> Save:
        def save(place: Path) -> Callable[[], object]:
            future = dcp.async_save(state, checkpoint_id=place, no_dist=True, **options)
            assert isinstance(future, Future)
            return future.result

        return save

    return {
        "torch.save": at_once(lambda file: torch.save(state, file)),
        "safetensors.save_file": at_once(lambda file: save_file(state, file)),
        "dcp.async_save": beside(),
        "dcp.async_save, one stager kept": beside(async_stager=stager),
    }


def _state(engine: Engine, ema: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    state = {}
    for (name, parameter), average in zip(engine.module.named_parameters(), ema, strict=True):
        state[f"model.{name}"] = parameter.detach()
        state[f"ema.{name}"] = average
        for kind in ("exp_avg", "exp_avg_sq"):
            state[f"{kind}.{name}"] = engine.optimizer.state[parameter][kind]
    return state


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
