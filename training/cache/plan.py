"""What a cache is to be: its datasets, their identities, and the address of every shard."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from conf.encoding import EncodingConfig
from conf.enums import LatentStore
from conf.errors import UserError
from conf.schema import CacheCommand
from data.addressed import HASH_DIGITS, address
from data.manifest import canonical_json, sha256, square_side
from data.sample import MEAN, META, MOMENTS, POOLED, TEXT, TOKENS
from data.spec import numbered
from data.storage import Prefix, open_prefix
from data.stream import Dataset
from data.views import view_names
from training.autoencode import check_sizes
from training.encoders import Autoencoder
from training.meaning import check_scale
from training.models.text import TextEncoder

# Raised when the same inputs would give other numbers: it is part of every cache's identity.
CACHE_VERSION = 2
MOST_CAPTIONS = 8  # of a sample

Sizes = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Target:
    """One dataset that is written.

    Args:
        out: Where.
        buckets: Its image sizes, in the order of the buckets of the images.
        settings: All that decides its content.
        names: Address of each shard, in the order of the shards of images.
    """

    out: Prefix
    buckets: Sizes
    settings: dict[str, Any]
    names: tuple[str, ...]


def plan_targets(
    config: CacheCommand, data: Dataset, autoencoder: Autoencoder, text_encoder: TextEncoder
) -> tuple[Target, ...]:
    """The datasets that a command makes in one pass over the images.

    Raises:
        UserError: Sizes that the autoencoder cannot divide.
    """
    check_scale(config.encoding.scale, autoencoder)
    common = {
        "kind": "latents",
        "version": CACHE_VERSION,
        "autoencoder": autoencoder.fingerprint,
        "text_encoder": text_encoder.fingerprint,
        "max_length": text_encoder.max_length,
        "padding": config.text_encoder.padding,
        "deduplicate": config.deduplicate,
        "encoding": encoding_settings(config.encoding),
    }
    targets = []
    for size in config.sizes or [None]:
        buckets = data.manifest.buckets if size is None else scaled(data, size)
        setting = f"data.url={config.data.url}" if size is None else f"sizes={size}"
        check_sizes(autoencoder.model, buckets, setting)
        settings = {**common, "buckets": [list(bucket) for bucket in buckets]}
        inputs = {name: value for name, value in settings.items() if name != "kind"}
        # Of tars that were only indexed it decides which captions they have.
        inputs["caption_field"] = data.manifest.settings.get("caption_field")
        names = tuple(
            address(number, {**inputs, "images": shard.sha256, "index": shard.index_sha256})
            for number, shard in enumerate(data.manifest.shards)
        )
        identity = {**settings, "images": data.manifest.fingerprint}
        places = [config.out.rstrip("/") or config.out]
        places += [] if size is None else [str(size)]
        places += [sha256(canonical_json(identity))[:HASH_DIGITS]] if config.beside else []
        targets.append(Target(open_prefix("/".join(places), "out"), buckets, identity, names))
    return tuple(targets)


def encoding_settings(config: EncodingConfig) -> dict[str, Any]:
    """What decides the numbers, as JSON; what is not in use is left out."""
    found = {name: getattr(value, "value", value) for name, value in asdict(config).items()}
    if not config.crops:
        del found["crop_zoom"], found["crop_seed"]
    return found


def scaled(data: Dataset, size: int) -> Sizes:
    """The buckets of a dataset, made so much smaller or larger that its square has this side.

    Raises:
        UserError: A side is not a whole number of pixels then.
    """
    side = square_side(data.manifest.buckets)
    for bucket in data.manifest.buckets:
        for length in bucket:
            if length * size % side:
                raise UserError(
                    f"sizes={size}",
                    f"makes {length} pixels of the bucket {bucket[0]}x{bucket[1]} no whole number",
                    f"choose a size that divides {side}, or shard with other buckets",
                )
    return tuple((h * size // side, w * size // side) for h, w in data.manifest.buckets)


def members_of(config: EncodingConfig, text_encoder: TextEncoder) -> tuple[str, ...]:
    """The extensions of a sample's members, in the order of the index's columns."""
    latents = MOMENTS if config.store is LatentStore.moments else MEAN
    captions = caption_slots(config)
    stores_ids = config.text.value == "ids"
    members = numbered(latents, len(view_names(config)))
    members += numbered(TOKENS if stores_ids else TEXT, captions)
    if text_encoder.pooled_width and not stores_ids:
        members += numbered(POOLED, captions)
    return (*members, META)


def caption_slots(config: EncodingConfig) -> int:
    """The most captions that a sample can have."""
    return MOST_CAPTIONS if config.captions else 1


def bytes_of_sample(
    config: EncodingConfig, buckets: Sequence[tuple[int, int]], model: Any, text: TextEncoder
) -> int:
    """The least that a sample takes: the smallest size, a caption of two tokens unless padded."""
    number = 4 if config.dtype.value == "float32" else 2
    places = min(h * w for h, w in buckets) // model.downsampling**2
    kinds = 2 if config.store is LatentStore.moments else 1
    latents = places * kinds * model.latent_channels * len(view_names(config)) * number
    tokens = text.max_length if text.padding else 2
    caption = 4 * tokens if config.text.value == "ids" else tokens * text.width * number
    return int(latents + caption)
