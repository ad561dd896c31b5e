"""Sample grids while training goes on: the same captions from the same noise every time."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from conf.training import ValidationConfig
from data.say import say
from training.engine.strategy import Engine
from training.trained import Painter, grid, sample_images
from training.watch import GoOn, Seen, Watch

FOLDER = "samples"
BATCH = 8  # images made at once; twice as many pass through the denoiser where it is guided
COLUMNS = 4


class _Left(Exception):
    """The run is told to stop."""


def grid_watch(config: ValidationConfig, painter: Painter) -> Watch:
    """Makes a grid of `validation.prompts`, of which every rank samples its share.

    Args:
        config: With prompts.
        painter: What makes the images; its denoiser is the one that is trained.
    """

    def look(engine: Engine, go_on: GoOn) -> Seen | None:
        now = replace(painter, unet=engine.module)
        own = range(engine.world.rank, len(config.prompts), engine.world.size)
        images: dict[int, NDArray[np.uint8]] = {}
        left = False
        try:
            images = dict(zip(own, sample_prompts(now, config, own, go_on), strict=True))
        except _Left:
            left = True
        if engine.any(left):
            return None
        everyone: dict[int, NDArray[np.uint8]] = {}
        for part in engine.gather(images):
            everyone |= part
        if not engine.world.main:
            return Seen()
        say(f"train: sampled {len(everyone)} prompts")
        ordered = np.stack([everyone[place] for place in range(len(config.prompts))])
        return Seen(pictures={FOLDER: grid(ordered, columns=min(COLUMNS, len(ordered)))})

    return Watch(config.grid_every_samples, look)


def sample_prompts(
    painter: Painter, config: ValidationConfig, places: range, go_on: GoOn
) -> list[NDArray[np.uint8]]:
    """Images (H, W, 3), uint8, of the prompts at some places of the list.

    Raises:
        _Left: They are not to be made after all.
    """

    def on_step(*_: int) -> None:
        if not go_on():
            raise _Left

    images: list[NDArray[np.uint8]] = []
    for i in range(0, len(places), BATCH):
        some = places[i : i + BATCH]
        captions = [config.prompts[place] for place in some]
        images += [*sample_images(painter, captions, some, config.sampler, config.seed, on_step)]
    return images
