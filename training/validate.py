"""The loss on held-out samples while training goes on, over the same noise every time.

Owns which samples, times and noise: all of them follow from (validation.seed, place), so that the
value depends on the weights alone. Refuses datasets whose numbers mean something else.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from conf.diffusion import DiffusionConfig
from conf.errors import UserError
from conf.schema import TrainCommand
from conf.training_rules import micro_batch
from data.agree import differences, means_latents
from data.corpus import Corpus
from data.loader import batches
from data.local_cache import LocalCache
from data.manifest import canonical_json, sha256
from data.say import say
from data.stream import open_dataset
from training.diffusion.loss import diffusion_loss
from training.diffusion.schedule import Schedule
from training.engine.strategy import Engine
from training.engine.world import current_world
from training.feed import Feed
from training.names import VAL_LOSS
from training.numbers import as_tensor
from training.random import Purpose, normal, uniform
from training.step import as_denoiser, final_latents, stored_condition, stratified
from training.watch import GoOn, Seen, Watch

SETTING = "validation.url"
LOSS, BIN = VAL_LOSS, "val_loss_bin_"
# Samples of one size that follow each other in the order. Fixed numbers, for the order of several
# sizes depends on them; few there, so that a short measurement meets every size.
UNIT, UNIT_OF_SEVERAL_SIZES = 32, 8
POSTERIOR, NOISE = 1, 2  # draws of a place, after that of its time


def validation_watch(config: TrainCommand, data: Corpus, feed: Feed, schedule: Schedule) -> Watch:
    """Measures the loss on `validation.url`.

    Args:
        config: With that setting.
        data: What is trained on.
        feed: What reads and encodes it, and will the held-out samples.
        schedule: The forward process.

    Raises:
        UserError: The dataset does not go with what is trained on.
    """
    held_out = open_held_out(config, data)
    settings, world = config.validation, current_world()
    count = min(settings.samples, held_out.samples)
    micro = micro_batch(config.batch_size, config.micro_batch_size, world.size)
    places = pieces(count, unit_of(held_out.main.manifest.buckets), micro)
    places = places[world.rank :: world.size]

    def look(engine: Engine, go_on: GoOn) -> Seen | None:
        sums = torch.zeros(settings.bins, 2, dtype=torch.float64, device=engine.device)
        there = schedule.to(engine.device)
        reading = batches(held_out, feed.collate, places, config.data.threads)
        left = False
        with closing(reading), torch.no_grad():
            for batch in reading:
                if left := not go_on():
                    break
                losses, times = held_out_losses(
                    engine.module, feed, batch, config.diffusion, there, settings.seed, count
                )
                sums += bin_sums(losses, times, settings.bins)
        if engine.any(left):
            return None
        values = bin_means(engine.sum(sums))
        if engine.world.main:
            say(f"train: validation loss {values[LOSS]:.4f}")
        return Seen(values)

    meant = [held_out.main.manifest.fingerprint, settings.seed, count]
    return Watch(settings.every_samples, look, sha256(canonical_json(meant)))


def open_held_out(config: TrainCommand, data: Corpus) -> Corpus:
    """The dataset that is measured, in an order of its own.

    Raises:
        UserError: It is empty, of another kind, trained on, or its numbers mean something else.
    """
    url, main = config.validation.url, data.main.manifest
    assert url is not None
    cache = None
    if config.data.local_cache:
        cache = LocalCache(Path(config.data.local_cache), int(config.data.local_cache_gb * 1e9))
    dataset = open_dataset(url, main.kind, SETTING, cache)
    manifest, where = dataset.manifest, f"{SETTING}={url}"
    if not manifest.samples:
        raise UserError(where, "has no samples", "give a dataset that has some")
    if manifest.fingerprint in {one.manifest.fingerprint for one in data.datasets}:
        raise UserError(where, "is trained on", "give a dataset that is held out")
    if main.kind == "latents" and not means_latents(manifest):
        remedy = "make it again with `ldm cache`"
        raise UserError(where, "does not say what its latents and texts mean", remedy)
    for wrong in differences(main, manifest):
        raise UserError(where, f"has {wrong} than data.url", "cache it with the same settings")
    for size in sorted(set(manifest.buckets) - set(data.buckets)):
        raise UserError(
            where,
            f"has images of {size[0]}x{size[1]} pixels, which data.url has none of",
            "shard it with the same size and buckets",
        )
    unit = unit_of(manifest.buckets)
    return Corpus([dataset], None, config.validation.seed, config.data.block_shards, unit)


def unit_of(sizes: Sequence[tuple[int, int]]) -> int:
    """How many samples of one size follow each other."""
    return UNIT_OF_SEVERAL_SIZES if len(sizes) > 1 else UNIT


def pieces(samples: int, unit: int, most: int) -> list[range]:
    """Places 0 to `samples` in pieces of at most `most`, none of which has places of two units."""
    units = [range(i, min(i + unit, samples)) for i in range(0, samples, unit)]
    return [unit[i : i + most] for unit in units for i in range(0, len(unit), most)]


def held_out_losses(
    module: nn.Module,
    feed: Feed,
    read: object,
    config: DiffusionConfig,
    schedule: Schedule,
    seed: int,
    samples: int,
) -> tuple[Tensor, Tensor]:
    """Unweighted losses of some samples with their captions.

    Args:
        module: The plain denoiser.
        feed: Encodes what was read.
        read: As the feed's collate gives it.
        config: Of the forward process.
        schedule: On the device to compute on.
        seed: Of noise and times.
        samples: That are measured in all; each has a time in a part of its own of [0, 1).

    Returns:
        Losses, and the draws of times in [0, 1) that they are of: (B,) each.
    """
    device, spec = schedule.alphas.device, feed.meaning.latents
    batch = feed.encode(read)
    places = batch.places.tolist()
    moments = as_tensor(batch.moments).float()
    shape = (spec.channels, *moments.shape[2:])
    posterior, noise = (
        normal(seed, places, Purpose.evaluation, shape, draw) for draw in (POSTERIOR, NOISE)
    )
    latents = final_latents(moments, posterior, spec)
    times = stratified(uniform(seed, places, Purpose.evaluation), batch.places, samples)
    condition = feed.embed(batch) if feed.embed else stored_condition(batch, device)
    losses = diffusion_loss(
        as_denoiser(module),
        latents.to(device, memory_format=torch.channels_last),
        noise.to(device, memory_format=torch.channels_last),
        schedule.times_at(times).to(device),
        condition.to(device),
        schedule,
        config.prediction,
    )
    return losses, times.to(device)


def bin_sums(losses: Tensor, times: Tensor, bins: int) -> Tensor:
    """Sums and counts of losses by equal parts of the times.

    Args:
        losses: (B,).
        times: (B,), in [0, 1).
        bins: Number of parts.

    Returns:
        (bins, 2), float64.
    """
    rows = torch.stack([losses.double(), torch.ones_like(times)], dim=1)
    sums = torch.zeros(bins, 2, dtype=torch.float64, device=losses.device)
    return sums.index_add(0, (times * bins).long(), rows)


def bin_means(sums: Tensor) -> dict[str, float]:
    """The mean over all samples and of each bin that has any, from sums and counts (bins, 2)."""
    named = {f"{BIN}{i}": (total / n) for i, (total, n) in enumerate(sums.tolist()) if n}
    total, count = sums.sum(0).tolist()
    return {LOSS: total / count, **named}
