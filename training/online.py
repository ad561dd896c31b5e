"""Images that are encoded as training goes, to the batches that a cache of them would give."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.enums import LatentScale
from conf.errors import RunError, UserError
from conf.rules import micro_batch
from conf.schema import TrainCommand
from data.claim import claimed
from data.collate import ImageCollator
from data.corpus import Corpus
from data.draw import Draw, drawn
from data.manifest import square_side
from data.progress import progress
from data.sample import ImageBatch, LatentBatch, RawSample
from data.say import say
from data.spec import LatentSpec, TextSpec, parse_spec
from data.storage import open_prefix
from data.stream import Dataset
from data.views import make_view, view_names
from training.autoencode import check_sizes
from training.cache.assemble import StoredView
from training.cache.plan import caption_slots
from training.cache.read import ROWS_AT_ONCE, Decoded, captions_of, read_rows
from training.cache.statistics import merged, shard_statistics
from training.cache.write import scaling
from training.encode import Encoder, not_finite
from training.encoders import (
    Autoencoder,
    autoencoder_origin,
    load_autoencoder,
    text_encoder_origin,
)
from training.engine.world import current_world
from training.feed import Feed, Meaning
from training.models.text import load_text_encoder
from training.numbers import as_tensor
from training.step import Condition, condition_of_one

# What is measured of latents, once for a run.
MEASURED = ("mean", "std", "posterior_std", "rms_error", "max_error")


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
    micro = micro_batch(config.batch_size, config.micro_batch_size, current_world().size)
    encoder = Encoder(autoencoder, text_encoder, config.encoding, micro)
    meaning = Meaning(
        _latent_spec(config, data, autoencoder, encoder),
        _text_spec(config, encoder),
        {
            "autoencoder": autoencoder_origin(config.autoencoder),
            "text_encoder": text_encoder_origin(config.text_encoder),
        },
    )
    collate = ImageCollator(config.data.max_bad_share, _chooser(config))
    return Feed(
        meaning,
        collate,
        lambda batch: encode_batch(encoder, batch),
        _empty(encoder),
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
    lengths = [len(one.tokens) for one in texts]
    tokens = np.zeros((len(texts), max(lengths), *texts[0].tokens.shape[1:]), texts[0].tokens.dtype)
    for row, one in zip(tokens, texts, strict=True):
        row[: len(one.tokens)] = one.tokens
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    vectors = [one.pooled for one in texts if one.pooled is not None]
    pooled = np.stack(vectors) if vectors else None
    return LatentBatch(batch.places, latents.values, tokens, mask, pooled)


def _chooser(config: TrainCommand) -> Any:
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


def _empty(encoder: Encoder) -> Condition:
    stored = encoder.captions([""])[0]
    pooled = None if stored.pooled is None else as_tensor(stored.pooled).float()
    return condition_of_one(as_tensor(stored.tokens).float(), pooled)


def _latent_spec(
    config: TrainCommand, data: Corpus, autoencoder: Autoencoder, encoder: Encoder
) -> LatentSpec:
    """What the latents mean: as the run has it already, or as measured now."""
    encoding, model = config.encoding, autoencoder.model
    run = claimed(open_prefix(config.out, "out"))
    kept = parse_spec(LatentSpec, run.get("latents")) if run else None
    if kept and kept.autoencoder == autoencoder.fingerprint:
        measured = {name: getattr(kept, name) for name in MEASURED}
    elif encoding.scale is LatentScale.measured:
        measured = merged(list(_statistics(config, data.main, encoder)))
    else:
        measured = {"mean": (), "std": ()}
    shift, scale = scaling(encoding.scale, autoencoder, measured)
    return LatentSpec(
        channels=model.latent_channels,
        size=square_side(data.main.manifest.buckets) // model.downsampling,
        downsampling=model.downsampling,
        dtype=encoding.dtype.value,
        autoencoder=autoencoder.fingerprint,
        shift=shift,
        scale=scale,
        stored=encoding.store.value,
        scaling=encoding.scale.value,
        views=view_names(encoding),
        **measured,
    )


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
                yield shard_statistics(views, encoder.autoencoder.latent_channels)
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
            fields = (latents.values, latents.squared_error, latents.max_error)
            for number, values, squared, largest in zip(numbers, *fields, strict=True):
                views[number] = StoredView(values, float(squared), float(largest))
        yield from (views[number] for number in range(len(images)))


def _text_spec(config: TrainCommand, encoder: Encoder) -> TextSpec:
    assert config.text_encoder is not None
    text_encoder = encoder.text_encoder
    return TextSpec(
        encoder=text_encoder.fingerprint,
        width=text_encoder.width,
        max_length=text_encoder.max_length,
        dtype=config.encoding.dtype.value,
        empty_sha256="",
        captions=caption_slots(config.encoding),
        padding=config.text_encoder.padding,
        pooled_width=text_encoder.pooled_width,
    )
