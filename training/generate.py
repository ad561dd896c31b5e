"""`ldm sample`: prompts to images."""

import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conf.errors import UserError
from conf.schema import SampleCommand
from data.claim import claim
from data.image import encode_png
from data.manifest import canonical_json
from data.progress import peak_memory, progress, write_summary
from data.say import say
from data.storage import open_prefix
from training.diffuse import TrainedModel, load_trained
from training.diffusion.sampler import Progress, sample
from training.random import Purpose, normal
from training.step import as_denoiser, raw_latents

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
    model = load_trained(config.checkpoint, config.autoencoder, config.text_encoder)
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
            made.append(sample_images(model, part, places, config, lambda *_: meter.advance(1)))
    images = np.concatenate(made)
    for i, image in enumerate(images):
        out.write(f"{i:05d}.png", encode_png(image))
    out.write(GRID, encode_png(grid(images, columns=max(config.images_per_prompt, 4))))
    out.write(PROMPTS, canonical_json({"prompts": captions, "samples_seen": model.samples_seen}))
    write_summary(out, "sample", len(images), time.perf_counter() - started, peak_memory())


def sample_images(
    model: TrainedModel,
    captions: list[str],
    places: range,
    config: SampleCommand,
    on_step: Progress,
) -> NDArray[np.uint8]:
    """Images (B, H, W, 3), uint8, of captions, each by its caption, seed and place alone."""
    shape = (model.spec.channels, model.spec.size, model.spec.size)

    def noise_of_step(step: int) -> Tensor:
        return noise(step + 1)

    def noise(draw: int) -> Tensor:
        return normal(config.seed, places, Purpose.sampling, shape, draw).to(model.device)

    latents = sample(
        config.sampler,
        as_denoiser(model.unet),
        noise(0),
        model.encode_captions(captions),
        model.empty.repeated(len(captions)),
        model.schedule,
        model.diffusion.prediction,
        noise_of_step,
        on_step,
    )
    with torch.inference_mode():
        images = model.autoencoder.decode(raw_latents(latents, model.spec))
    return to_pixels(images)


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Images (B, 3, H, W) in [-1, 1] as uint8, (B, H, W, 3)."""
    pixels = images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def grid(images: NDArray[np.uint8], columns: int, border: int = 2) -> NDArray[np.uint8]:
    """Lay images (B, H, W, 3) out in rows on white."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    step_y, step_x = height + border, width + border
    canvas = np.full((rows * step_y + border, columns * step_x + border, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = border + i // columns * step_y, border + i % columns * step_x
        canvas[y : y + height, x : x + width] = image
    return canvas


def read_prompts(prompts: Any) -> list[str]:
    """Prompts from a list, or from a text file with one a line.

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
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError(f"prompts={prompts}", "has no prompts", "give at least one line of text")
    return list(prompts)
