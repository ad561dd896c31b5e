"""`ldm evaluate`: what a run has learned, measured on images that it was not trained on.

Reconstruction PSNR of the autoencoder, and the denoising loss with the right captions, with those
of other images and with empty ones, over the same noise and timesteps. Where that is asked for, the
energy score of the images that the run makes of their captions.
"""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conf.errors import UserError
from conf.schema import EvaluateCommand
from data.claim import claim
from data.collate import ImageCollator
from data.corpus import Corpus
from data.image import encode_png
from data.loader import batches
from data.progress import peak_memory, progress, read_summary, write_summary
from data.sample import ImageBatch
from data.say import say
from data.storage import open_prefix
from data.stream import Dataset, open_dataset
from training.autoencode import to_images
from training.diffuse import load_trained
from training.diffusion.loss import diffusion_loss
from training.energy import measure_energy
from training.names import ENERGY, EVALUATION
from training.random import Purpose, normal, uniform
from training.step import as_denoiser, final_latents
from training.trained import TrainedModel, grid, to_pixels

RECONSTRUCTIONS = "reconstructions.png"
CAPTIONS = ("right", "other", "empty")
SHOWN_IMAGES = 16
BATCH = 64
BLOCK_SHARDS = 16  # shards whose images are mixed where not all of them are measured


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.error:.4f}"


def estimate(values: NDArray[np.floating[Any]], groups: list[str]) -> Estimate:
    """The mean of per-image values and its standard error, images of one group counted as
    dependent.

    An emoji in five skin tones is not five independent pieces of evidence: the error sums residuals
    within a group first.

    Args:
        values: (N,).
        groups: Group of each image; at least two different ones.

    Source: Liang and Zeger 1986, for a mean; with the factor G / (G - 1) for few groups.
    """
    values = np.asarray(values, dtype=np.float64)
    names, member = np.unique(np.array(groups), return_inverse=True)
    sums = np.bincount(member, weights=values - values.mean())
    correction = len(names) / max(len(names) - 1, 1)
    return Estimate(
        float(values.mean()), float(np.sqrt(correction * np.square(sums).sum()) / len(values))
    )


def evaluate(config: EvaluateCommand) -> dict[str, Any]:
    """Measure a run and write evaluation.json and reconstructions.png.

    Raises:
        UserError: The run or the images cannot be used.
    """
    started = time.perf_counter()
    data = open_dataset(config.data.url, "images", memory=int(config.data.memory_gb * 1e9))
    out = open_prefix(config.out, "out")
    model = load_trained(
        config.checkpoint, config.autoencoder, config.text_encoder, config.ema_length
    )
    _check(config, data, model)
    settings = {
        "command": "evaluate",
        "images": data.manifest.fingerprint,
        "weights": model.weights,
        **{name: getattr(config, name) for name in ("samples", "draws", "seed")},
    }
    if config.images_per_caption:
        settings |= {"images_per_caption": config.images_per_caption, "sampler": _sampler(config)}
    out.require_writable(0)
    if not claim(out, settings) and read_summary(out):
        say(f"evaluate: {out.url} is finished, nothing to do")
        return dict(json.loads(out.read(EVALUATION)))
    batches = _read_all(data, config)
    result, picture = _measure(config, model, batches)
    keys = [key for batch in batches for key in batch.keys]
    result["trained_on"] = sum(dataset.count_keys(keys) for dataset in model.datasets)
    out.write(RECONSTRUCTIONS, encode_png(picture))
    out.write(EVALUATION, json.dumps(result, indent=1).encode() + b"\n")
    say(describe(result))
    write_summary(out, "evaluate", result["images"], time.perf_counter() - started, peak_memory())
    return result


def describe(result: dict[str, Any]) -> str:
    """The evidence in words, with standard errors."""
    psnr = Estimate(**result["psnr"])
    trained_on = f" ({result['trained_on']:,} have keys that the run was TRAINED on)"
    which = f"images{trained_on}" if result["trained_on"] else "held-out images"
    lines = [
        f"{which}: {result['images']} in {result['groups']} independent groups",
        f"reconstruction PSNR: {psnr.mean:.2f} ± {psnr.error:.2f} dB",
    ]
    for name in CAPTIONS:
        lines.append(f"denoising loss, {name:>5} captions: {Estimate(**result['loss'][name])}")
    for name in CAPTIONS[1:]:
        margin = Estimate(**result["margin"][name])
        ratio = margin.mean / margin.error if margin.error else 0.0
        verdict = "win" if ratio > 2 else "do NOT win"
        lines.append(
            f"right captions {verdict} over {name} ones: by {margin}, {ratio:.1f} standard errors"
        )
    if ENERGY in result:
        made = result["made"]
        lines.append(
            f"energy score of {made['images_per_caption']} images a caption, guidance "
            f"{made['guidance_scale']:g}, {made['steps']} steps of {made['kind']}: "
            f"{Estimate(**result[ENERGY])}; the lower the better"
        )
    return "\n".join(lines)


def _check(config: EvaluateCommand, data: Dataset, model: TrainedModel) -> None:
    size = model.spec.size * model.spec.downsampling
    if data.manifest.buckets != ((size, size),):
        given = ", ".join(f"{height}x{width}" for height, width in data.manifest.buckets)
        raise UserError(
            f"data.url={config.data.url}",
            f"has images of {given} pixels, the run was trained on {size}",
            f"shard with size={size}",
        )
    if data.manifest.samples < 2:
        raise UserError(f"data.url={config.data.url}", "has fewer than two images", "hold out more")


def _read_all(data: Dataset, config: EvaluateCommand) -> list[ImageBatch]:
    """The images to measure, each once, in the order of the seed."""
    corpus = Corpus([data], None, config.seed, BLOCK_SHARDS, BATCH)
    count = min(config.samples or corpus.samples, corpus.samples)
    places = [range(i, min(i + BATCH, count)) for i in range(0, count, BATCH)]
    return list(batches(corpus, ImageCollator(0), places, config.data.threads))


def _measure(
    config: EvaluateCommand, model: TrainedModel, batches: list[ImageBatch]
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    captions = [caption for batch in batches for caption in batch.captions]
    groups = [
        meta.get("group", key) for b in batches for key, meta in zip(b.keys, b.metas, strict=True)
    ]
    others = other_captions(captions, groups)
    psnr, losses, kept = [], [], []
    with progress("evaluate", len(captions)) as meter:
        for number, batch in enumerate(batches):
            images = to_images(batch.images, model.device)
            moments = model.encode_images(images)
            restored = to_pixels(_decode_mean(model, moments))
            psnr.append(_psnr(batch.images, restored))
            first = number * BATCH
            wrong = others[first : first + len(batch.captions)]
            latents = _latents(config, model, batch, moments)
            losses.append(_caption_losses(config, model, batch, latents, wrong))
            if config.images_per_caption:
                kept.append(latents.cpu())
            if number == 0:
                picture = _side_by_side(batch.images, restored)
            meter.advance(len(batch.captions))
    result = _result(np.concatenate(psnr), np.concatenate(losses, axis=1), groups)
    if config.images_per_caption:
        result[ENERGY] = _plain(measure_energy(config, model, batches, kept), groups)
        result["made"] = {"images_per_caption": config.images_per_caption, **_sampler(config)}
    return result, picture


def other_captions(captions: list[str], groups: list[str]) -> list[str]:
    """For each image the caption of another one, of another group: the next one round the list.

    Raises:
        UserError: All images are of one group.
    """
    count = len(captions)
    others = []
    for i in range(count):
        shifts = (s for s in range(1, count) if groups[(i + s) % count] != groups[i])
        shift = next(shifts, None)
        if shift is None:
            raise UserError("data.url", "all its images are of one group", "hold out more groups")
        others.append(captions[(i + shift) % count])
    return others


def _latents(
    config: EvaluateCommand, model: TrainedModel, batch: ImageBatch, moments: Tensor
) -> Tensor:
    """Final latents (B, C, H, W) of images, drawn by their places as those of training are."""
    shape = (model.spec.channels, *moments.shape[2:])
    posterior = normal(config.seed, batch.places.tolist(), Purpose.posterior, shape)
    return final_latents(moments, posterior.to(model.device), model.spec)


@torch.inference_mode()
def _caption_losses(
    config: EvaluateCommand,
    model: TrainedModel,
    batch: ImageBatch,
    latents: Tensor,
    others: list[str],
) -> NDArray[np.float64]:
    """Mean loss per image over the draws with right, other and empty captions: (3, B)."""
    places, shape = batch.places.tolist(), tuple(latents.shape[1:])
    conditions = (  # in the order of CAPTIONS
        model.encode_captions(batch.captions),
        model.encode_captions(others),
        model.empty.repeated(len(places)),
    )
    offset = uniform(config.seed, places, Purpose.evaluation)
    total = np.zeros((len(CAPTIONS), len(places)))
    for draw in range(config.draws):
        noise = normal(config.seed, places, Purpose.evaluation, shape, draw + 1).to(model.device)
        # One draw in each of `draws` equal parts of the timesteps: less variance for the same work.
        timesteps = model.schedule.times_at((draw + offset) / config.draws)
        for row, condition in enumerate(conditions):
            loss = diffusion_loss(
                as_denoiser(model.unet),
                latents,
                noise,
                timesteps.to(model.device),
                condition,
                model.schedule,
                model.diffusion.prediction,
            )
            total[row] += loss.double().cpu().numpy()
    return total / config.draws


@torch.inference_mode()
def _decode_mean(model: TrainedModel, moments: Tensor) -> Tensor:
    return model.autoencoder.decode(moments[:, : model.spec.channels])


def _psnr(images: NDArray[np.uint8], restored: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB of each image, (B,), over its pixels and channels."""
    error = np.square(images.astype(np.float64) - restored.astype(np.float64)).mean((1, 2, 3))
    result: NDArray[np.float64] = 10 * np.log10(255.0**2 / np.maximum(error, 1e-3))
    return result


def _side_by_side(images: NDArray[np.uint8], restored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of originals, each above a row of their reconstructions."""
    count = min(SHOWN_IMAGES, len(images)) // 8 * 8 or len(images)
    rows = []
    for i in range(0, count, 8):
        rows += [images[i : i + 8], restored[i : i + 8]]
    return grid(np.concatenate(rows), columns=min(8, count))


def _result(
    psnr: NDArray[np.float64], losses: NDArray[np.float64], groups: list[str]
) -> dict[str, Any]:
    margins = {name: losses[i] - losses[0] for i, name in enumerate(CAPTIONS) if i}
    return {
        "images": len(groups),
        "groups": len(set(groups)),
        "psnr": _plain(psnr, groups),
        "loss": {name: _plain(losses[i], groups) for i, name in enumerate(CAPTIONS)},
        "margin": {name: _plain(margin, groups) for name, margin in margins.items()},
    }


def _plain(values: NDArray[np.float64], groups: list[str]) -> dict[str, float]:
    return asdict(estimate(values, groups))


def _sampler(config: EvaluateCommand) -> dict[str, Any]:
    return {name: getattr(v, "value", v) for name, v in asdict(config.sampler).items()}
