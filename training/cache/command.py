"""`ldm cache`: one process's part of a cache, and the manifest if all parts are there."""

import time
from typing import Any

from conf.schema import CacheCommand
from data.addressed import require_whole, sweep, whole_shards
from data.claim import claim, claimed
from data.manifest import Manifest
from data.progress import peak_memory, write_summary
from data.ranks import this_rank
from data.say import say
from data.shard import begin_dataset
from data.stream import Dataset, open_dataset
from training.cache.pipeline import Pipeline
from training.cache.plan import Target, bytes_of_sample, plan_targets
from training.cache.write import finish, say_counts
from training.encode import Encoder
from training.encoders import load_autoencoder
from training.models.text import load_text_encoder

OPEN_SHARDS = 3  # the one that is read, the next, and one that a thread is late with


def make_cache(config: CacheCommand) -> list[Manifest]:
    """Encode a dataset of images, or this rank's part of it; what is there already is kept.

    Returns:
        The manifests of the datasets that are finished.

    Raises:
        UserError: A setting does not fit, `out` holds another cache, or too many images are bad.
        RunError: An encoder gives numbers that are not finite.
    """
    started = time.perf_counter()
    ranks = this_rank(config.rank, config.world_size)
    memory = int(config.data.memory_gb * 1e9)
    data = open_dataset(config.data.url, "images", open_shards=OPEN_SHARDS, memory=memory)
    autoencoder = load_autoencoder(config.autoencoder)
    text_encoder = load_text_encoder(config.text_encoder)
    encoder = Encoder(autoencoder, text_encoder, config.encoding, config.micro_batch_size)
    targets = plan_targets(config, data, autoencoder, text_encoder)
    for target in targets:  # none is begun if another's place holds other work
        if claimed(target.out) not in (None, target.settings):
            claim(target.out, target.settings)
    finished, due = [], []
    for target in targets:
        there = _begin(config, data, encoder, target)
        if there is None:
            due.append(target)
            continue
        require_whole(target.out, there)
        sweep(target.out, there)  # whoever finished it may have been killed before this
        say(f"cache: {target.out.url} is finished ({there.samples:,} latents), nothing to do")
        finished.append(there)
    if not due:
        return finished
    pipeline = Pipeline(config, data, encoder, due, ranks)
    encoded = pipeline.run()
    rank = f"{ranks.rank}-of-{ranks.world_size}" if ranks.world_size > 1 else ""
    for target in due:
        entries = whole_shards(target.out, target.names)
        missing = [name for name in target.names if name not in entries]
        counts: dict[str, Any] = {}
        if missing:
            say(
                f"cache: rank {ranks.rank} of {ranks.world_size} has made its shards; "
                f"{len(missing):,} of {len(target.names):,} are missing in {target.out.url}, "
                f"the first is {missing[0]}"
            )
        else:
            ordered = [entries[name] for name in target.names]
            finished.append(finish(config, data, autoencoder, encoder, target, ordered))
            counts = say_counts(config, ordered)
        seconds = time.perf_counter() - started
        counts["waiting_share"] = round(pipeline.waited / seconds, 4)
        write_summary(target.out, "cache", encoded, seconds, peak_memory(), rank, **counts)
    return finished


def _begin(
    config: CacheCommand, data: Dataset, encoder: Encoder, target: Target
) -> Manifest | None:
    room = bytes_of_sample(
        config.encoding, target.buckets, encoder.autoencoder, encoder.text_encoder
    )
    return begin_dataset(target.out, target.settings, data.manifest.samples * room)
