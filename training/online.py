"""Images that are encoded as training goes, to the batches that a cache of them would give."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.enums import LatentScale
from conf.errors import RunError, UserError
from conf.schema import TrainCommand
from conf.training_rules import micro_batch
from data.claim import claimed, require_free
from data.collate import Choose, ImageCollator
from data.corpus import Corpus
from data.draw import Draw, drawn
from data.manifest import canonical_json, parse_record, sha256
from data.progress import progress
from data.sample import ImageBatch, LatentBatch, RawSample
from data.say import say
from data.storage import Prefix, open_prefix
from data.stream import Dataset
from data.views import make_view, view_names
from training.autoencode import check_sizes
from training.cache.assemble import StoredView
from training.cache.plan import caption_slots, encoding_settings
from training.cache.read import ROWS_AT_ONCE, Decoded, captions_of, read_rows
from training.cache.statistics import merged, shard_statistics
from training.encode import Encoder, not_finite
from training.encoders import autoencoder_origin, load_autoencoder, text_encoder_origin
from training.engine.world import current_world
from training.feed import Feed, encode_empty, pooled_of, side_by_side
from training.meaning import Meaning, check_scale, latent_spec, text_spec
from training.models.text import load_text_encoder

LONGEST_MEASURING = 3600.0  # seconds
SECONDS_BETWEEN_LOOKS = 0.5


def online_feed(config: TrainCommand, data: Corpus) -> Feed:
    """Images of a corpus, encoded on each rank's device as they come.

    Raises:
        UserError: There is no autoencoder or text encoder, or they do not fit.
    """
    if config.autoencoder is None or config.text_encoder is None:
        raise UserError(
            f"data.url={config.data.url}",
            "is a dataset of images, which need an autoencoder and a text encoder",
            "give autoencoder=... and text_encoder=..., or the `out` of `ldm cache`",
        )
    autoencoder = load_autoencoder(config.autoencoder)
    check_sizes(autoencoder.model, data.buckets, f"data.url={config.data.url}")
    text_encoder = load_text_encoder(config.text_encoder)
    check_scale(config.encoding.scale, autoencoder)
    micro = micro_batch(config.batch_size, config.micro_batch_size, current_world().size)
    encoder = Encoder(autoencoder, text_encoder, config.encoding, micro)
    encoding = config.encoding
    measured: Mapping[str, Any] = {"mean": (), "std": ()}
    if encoding.scale is LatentScale.measured:
        measured = measured_once(config, data.main, encoder, autoencoder.fingerprint)
    origins = {
        "autoencoder": autoencoder_origin(config.autoencoder),
        "text_encoder": text_encoder_origin(config.text_encoder),
    }
    meaning = Meaning(
        latent_spec(encoding, autoencoder, data.main.manifest.buckets, measured),
        # Whatever a cache would store, what comes here is embedded already.
        replace(text_spec(text_encoder, encoding, caption_slots(encoding)), stored="embeddings"),
        origins,
        encoding.precision,
    )
    return Feed(
        meaning,
        ImageCollator(config.data.max_bad_share, _chooser(config)),
        lambda batch: encode_batch(encoder, batch),
        encode_empty(encoder),
        identity={"latents": asdict(meaning.latents), "text": asdict(meaning.text)},
    )


def encode_batch(encoder: Encoder, batch: ImageBatch) -> LatentBatch:
    """A batch of images as the cache would have it.

    Raises:
        RunError: Numbers are not finite; names the sample.
    """
    latents = encoder.latents(list(batch.images)).result()
    for key, finite, computed in zip(batch.keys, latents.finite, latents.computed, strict=True):
        if not finite:
            what = f"autoencoder's moments of {key}"
            raise RunError(not_finite(what, encoder.config, bool(computed)))
    texts = encoder.captions(batch.captions)
    tokens, mask = side_by_side([one.tokens for one in texts])
    return LatentBatch(batch.places, latents.values, tokens, mask, pooled_of(texts))


def _chooser(config: TrainCommand) -> Choose:
    """Takes the view and the caption that a cache would give at a place."""
    views = len(view_names(config.encoding))

    def choose(
        dataset: Dataset,
        sample: RawSample,
        image: NDArray[np.uint8],
        size: tuple[int, int],
        place: int,
    ) -> tuple[NDArray[np.uint8], str]:
        at, seed = np.array([place]), config.data.seed
        view = int(drawn(seed, at, Draw.view, views)[0])
        captions = captions_of(sample, dataset, config.encoding)
        caption = int(drawn(seed, at, Draw.caption, len(captions))[0])
        return make_view(image, size, config.encoding, view, sample.key), captions[caption]

    return choose


def measured_once(
    config: TrainCommand, dataset: Dataset, encoder: Encoder, autoencoder: str
) -> Mapping[str, Any]:
    """Statistics of the latents, which rank 0 measures when a run begins, for all and for good.

    Another GPU would measure other last bits, and ranks must not differ.

    Raises:
        UserError: `out` holds something else.
        RunError: Rank 0 has measured nothing for an hour.
    """
    out = open_prefix(config.out, "out")
    if (run := claimed(out)) is not None and run.get("command") != "train":
        raise UserError(f"out={out.url}", "holds other work", "choose another out")
    require_free(out)
    inputs = {
        "autoencoder": autoencoder,
        "images": dataset.manifest.fingerprint,
        "encoding": encoding_settings(config.encoding),
        "samples": config.data.statistics_samples,
    }
    name = f".measured-{sha256(canonical_json(inputs))[:16]}.json"
    if not out.exists(name):
        if current_world().main:
            parts = list(_statistics(config, dataset, encoder))
            if not parts:
                raise RunError(f"{dataset.prefix.url}: none of its first images can be decoded")
            found = merged(parts)
            out.write(name, canonical_json(found))
        else:
            _wait_for(out, name)
    said = parse_record(out.read(name), f"{out.url}/{name}", "remove it, and run again")
    return {key: tuple(one) if isinstance(one, list) else one for key, one in said.items()}


def _wait_for(out: Prefix, name: str) -> None:
    began = time.monotonic()
    while not out.exists(name):
        if time.monotonic() - began > LONGEST_MEASURING:
            raise RunError(f"{out.url}: rank 0 has not measured the scale of latents in an hour")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _statistics(
    config: TrainCommand, dataset: Dataset, encoder: Encoder
) -> Iterator[dict[str, Any]]:
    """Of each shard what a cache would measure, over the first samples of the dataset.

    If it has no more than these, scale and shift are those that its cache would have.
    """
    samples, most = dataset.manifest.samples, config.data.statistics_samples
    if samples > most:
        say(f"train: the scale of latents is measured on the first {most:,} of {samples:,} samples")
    left = most
    with progress("measure", min(samples, most), shown=current_world().main) as meter:
        for number, shard in enumerate(dataset.manifest.shards):
            rows = range(min(shard.samples, left))
            left -= len(rows)
            if rows:
                views = _stored_views(config, dataset, encoder, number, rows)
                part = shard_statistics(views, encoder.autoencoder.latent_channels)
                if part["count"]:
                    yield part
                meter.advance(len(rows))


def _stored_views(
    config: TrainCommand, dataset: Dataset, encoder: Encoder, shard: int, rows: range
) -> Iterator[StoredView]:
    """All views of some samples as a cache would store them, in its order."""
    sizes = [dataset.manifest.buckets]
    for first in range(rows.start, rows.stop, ROWS_AT_ONCE):
        part = range(first, min(first + ROWS_AT_ONCE, rows.stop))
        _, found = read_rows(dataset, sizes, config.encoding, shard, part)
        images = [view for one in found if isinstance(one, Decoded) for view in one.views[0]]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for number, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(number)
        views: dict[int, StoredView] = {}
        for numbers in by_size.values():
            latents = encoder.latents([images[number] for number in numbers]).result()
            if not latents.finite.all():
                what = f"autoencoder's moments of an image of shard {shard}"
                raise RunError(not_finite(what, encoder.config, bool(latents.computed.all())))
            fields = (latents.values, latents.squared_error, latents.max_error)
            for number, values, squared, largest in zip(numbers, *fields, strict=True):
                views[number] = StoredView(values, float(squared), float(largest))
        yield from (views[number] for number in range(len(images)))
