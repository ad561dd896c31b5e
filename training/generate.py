"""`ldm sample`: prompts to images."""

import time
from dataclasses import asdict
from typing import Any

import numpy as np

from conf.errors import UserError
from conf.schema import SampleCommand
from data.claim import claim
from data.image import encode_png
from data.manifest import canonical_json
from data.progress import peak_memory, progress, write_summary
from data.say import say
from data.storage import open_prefix
from training.diffuse import load_trained
from training.trained import grid, sample_images

GRID = "grid.png"
PROMPTS = "prompts.json"
BATCH = 64


def generate(config: SampleCommand) -> None:
    """Sample images for prompts and write each one, and all of them in a grid.

    Raises:
        UserError: No prompts, or the run cannot be read.
    """
    started = time.perf_counter()
    prompts = read_prompts(config.prompts)
    out = open_prefix(config.out, "out")
    model = load_trained(
        config.checkpoint, config.autoencoder, config.text_encoder, config.ema_length
    )
    model.text_encoder.tokenize(prompts)  # which refuses what is no class, before `out` is taken
    out.require_writable(0)
    captions = [prompt for prompt in prompts for _ in range(config.images_per_prompt)]
    settings = {"command": "sample", "weights": model.weights, "prompts": captions}
    sampler = {name: str(value) for name, value in asdict(config.sampler).items()}
    claimed_before = not claim(out, {**settings, "seed": config.seed, "sampler": sampler})
    if claimed_before and out.exists(PROMPTS):
        say(f"sample: {out.url} is finished ({len(captions)} images), nothing to do")
        return
    batches = [range(i, min(i + BATCH, len(captions))) for i in range(0, len(captions), BATCH)]
    made = []
    with progress("sample", config.sampler.steps * len(batches), unit="steps") as meter:
        for places in batches:
            part = [captions[place] for place in places]
            made.append(
                sample_images(
                    model, part, places, config.sampler, config.seed, lambda *_: meter.advance(1)
                )
            )
    images = np.concatenate(made)
    for i, image in enumerate(images):
        out.write(f"{i:05d}.png", encode_png(image))
    out.write(GRID, encode_png(grid(images, columns=max(config.images_per_prompt, 4))))
    out.write(PROMPTS, canonical_json({"prompts": captions, "samples_seen": model.samples_seen}))
    write_summary(out, "sample", len(images), time.perf_counter() - started, peak_memory())


def read_prompts(prompts: Any) -> list[str]:
    """Prompts from a list of texts and numbers of classes, or from a text file with one a line.

    Raises:
        UserError: There are none.
    """
    if isinstance(prompts, str):
        folder, slash, name = prompts.rpartition("/")
        try:
            lines = open_prefix(folder or slash or ".", "prompts").read(name).decode().splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            raise UserError(
                f"prompts={prompts}",
                "is not a text file that can be read",
                "give a file with a prompt a line, or a list: prompts=['red apple','a cat']",
            ) from None
        prompts = [line.strip() for line in lines if line.strip()]
    if not prompts or not all(type(prompt) in (str, int) for prompt in prompts):
        raise UserError(f"prompts={prompts}", "has no prompts", "give at least one line of text")
    return [str(prompt) for prompt in prompts]
