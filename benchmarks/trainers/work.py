"""What every program steps: sizes, batches, and how the time is told. Imports only torch."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WIDTH, TOKENS = 1024, 77  # of captions
WARM_UP, STEPS = 2, 6


@dataclass(frozen=True, slots=True)
class Sizes:
    """A UNet of Stable Diffusion 2's shape with fewer channels, and a batch for it."""

    channels: int
    places: int
    batch: int
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    attention_levels: tuple[int, ...] = (0, 1, 2)
    head_channels: int = 64
    norm_groups: int = 32


CASES = {
    "32x32": Sizes(channels=64, places=32, batch=4),
    "16x16": Sizes(channels=128, places=16, batch=8),
}


def batch_of(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy latents, timesteps, captions and targets."""
    torch.manual_seed(0)
    shape = (sizes.batch, 4, sizes.places, sizes.places)
    timesteps = torch.randint(0, 1000, (sizes.batch,))
    return (
        torch.randn(shape),
        timesteps,
        torch.randn(sizes.batch, TOKENS, WIDTH),
        torch.randn(shape),
    )


def tell_step_time(step: Callable[[], object]) -> None:
    """Print the median seconds of a step, after some that warm up."""
    seconds = []
    for _ in range(WARM_UP + STEPS):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": statistics.median(seconds[WARM_UP:])}))


def told_case() -> Sizes:
    """The sizes of the case that the command line names."""
    torch.set_num_threads(2)
    return CASES[sys.argv[1]]
