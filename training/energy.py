"""The energy score: how far images that a run makes of held-out captions are from the real ones.

Of the latents that the denoiser learns, so that it needs no other network and no other numbers.
It is least, in the mean, where images are drawn as the real ones of their caption are: what is off
its caption, blurred or too alike costs. Refuses nothing: its settings are checked by conf's rules.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conf.schema import EvaluateCommand
from data.progress import progress
from data.sample import ImageBatch
from training.trained import TrainedModel, sample_latents

EXACT = "donot_use_mm_for_euclid_dist"  # of torch.cdist: differences, not products that cancel


def energy_scores(made: Tensor, real: Tensor) -> Tensor:
    """The energy score of several draws against what came to be.

    The mean distance of draws to the real one, less half of their mean distance to each other.
    A strictly proper score: no distribution of draws has a lower mean than that of the real ones.
    Distances are root mean squares over elements, so their unit does not depend on the size.

    Args:
        made: Draws, (B, M, ...), M at least 2.
        real: (B, ...).

    Returns:
        (B,), float64.

    Source: Gneiting and Raftery 2007, Section 4.3, with beta 1 and the sign turned; the second mean
    is over pairs of different draws, so that few draws have no bias.
    """
    draws, target = made.double().flatten(2), real.double().flatten(1)[:, None]
    count, size = draws.shape[1:]
    to_real = torch.cdist(draws, target, compute_mode=EXACT).mean((1, 2))
    to_others = torch.cdist(draws, draws, compute_mode=EXACT).sum((1, 2)) / (count * (count - 1))
    return (to_real - to_others / 2) / size**0.5


def measure_energy(
    config: EvaluateCommand, model: TrainedModel, batches: list[ImageBatch], latents: list[Tensor]
) -> NDArray[np.float64]:
    """The energy score of each held-out image, (N,), by its place, the seed and the sampler alone.

    Args:
        config: With `images_per_caption` of 2 or more.
        model: What makes images.
        batches: Captions and places.
        latents: The final latents of their images, (B, C, H, W) each.
    """
    count, steps = config.images_per_caption, config.sampler.steps
    found = []
    with progress("evaluate: sample", steps * count * len(batches), unit="steps") as meter:
        for batch, real in zip(batches, latents, strict=True):
            draws = [
                sample_latents(
                    model,
                    batch.captions,
                    [count * place + draw for place in batch.places.tolist()],
                    config.sampler,
                    config.seed,
                    lambda *_: meter.advance(1),
                )
                for draw in range(count)
            ]
            found.append(energy_scores(torch.stack(draws, 1).cpu(), real.cpu()).numpy())
    return np.concatenate(found)
