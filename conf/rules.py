"""Rules between settings. All of them run before anything is loaded, opened or started."""

import math
import re
from dataclasses import fields, is_dataclass
from typing import Any

from conf.cluster_rules import check_cluster
from conf.encoders import (
    CLASSES,
    MOST_CLASSES,
    AutoencoderConfig,
    KLAutoencoderConfig,
    TextEncoderConfig,
)
from conf.encoding import EncodingConfig
from conf.enums import Crop, ImageFormat
from conf.errors import UserError
from conf.groups import ClusterConfig, TableSource, WebDatasetSource
from conf.schema import (
    AutoencoderCommand,
    CacheCommand,
    EvaluateCommand,
    SampleCommand,
    ShardCommand,
    TrainCommand,
    VerifyCommand,
)
from conf.secrets import has_credentials
from conf.training_rules import check_training

MAY_BE_EMPTY = ("attention_levels", "sizes", "ema_lengths")


def check(config: Any) -> None:
    """Check one command's configuration.

    Raises:
        UserError: The first rule that does not hold.
    """
    _bounds(config)
    refuse_credentials(config)
    _classes(getattr(config, "text_encoder", None))
    if cluster := getattr(config, "cluster", None):
        check_cluster(config, cluster, not isinstance(config, SampleCommand | EvaluateCommand))
        if not isinstance(config, AutoencoderCommand | TrainCommand):
            _without_state(cluster)
    match config:
        case ShardCommand():
            for text in config.filter.fields:
                field_bound(text)
            _images(config)
            _ranks(config)
            if isinstance(config.source, TableSource):
                _table(config.source)
            if isinstance(config.source, WebDatasetSource):
                _tars(config, config.source)
        case AutoencoderCommand():
            if not isinstance(config.autoencoder, KLAutoencoderConfig):
                raise UserError(
                    f"autoencoder={config.autoencoder.kind}",
                    "cannot be trained",
                    "choose one without weights, autoencoder=kl_f8 or kl_emoji",
                )
            check_training(config)
        case CacheCommand():
            _ranks(config)
            _captions(config.encoding)
            _weights(config.autoencoder)
            _cache(config)
        case TrainCommand():
            check_training(config)
            _captions(config.encoding)
            _weights(config.autoencoder)
        case SampleCommand():
            _prompts(config.prompts)
            _weights(config.autoencoder)
        case EvaluateCommand():
            _weights(config.autoencoder)
            _made(config)
        case VerifyCommand():
            _audit(config)


def field_bound(text: str) -> tuple[str, str, float]:
    """A bound of `filter.fields`, `NAME>=NUMBER` or `NAME<=NUMBER`, as name, sign and number.

    Raises:
        UserError: It is written otherwise.
    """
    found = re.fullmatch(r"\s*([^<>=]*[^\s<>=])\s*(>=|<=)\s*([^\s<>=]+)\s*", text)
    try:
        number = float(found[3]) if found else math.nan
    except ValueError:
        number = math.nan
    if found is None or not math.isfinite(number):
        raise UserError(
            f"filter.fields={text}", "is no bound", "write NAME>=NUMBER or NAME<=NUMBER, in quotes"
        )
    return found[1], found[2], number


def _images(config: ShardCommand) -> None:
    size, buckets = config.size, config.buckets
    if buckets.max_aspect > 1 and size % buckets.step:
        near = max(1, round(size / buckets.step)) * buckets.step
        raise UserError(
            f"buckets.step={buckets.step}", f"does not divide size={size}", f"the nearest is {near}"
        )
    if config.quality is not None and config.format is ImageFormat.png:
        raise UserError(
            f"quality={config.quality}",
            "does nothing for format=png, which is lossless",
            "leave it out, or choose format=jpeg or webp",
        )


def _ranks(config: ShardCommand | CacheCommand) -> None:
    rank, world_size = config.rank, config.world_size
    if (rank is None) != (world_size is None):
        one, other = ("rank", "world_size") if world_size is None else ("world_size", "rank")
        raise UserError(one, f"is given without {other}", f"give {other}=... too, or neither")
    if rank is not None and world_size is not None and rank >= world_size:
        raise UserError(
            f"rank={rank}", f"is not below world_size={world_size}", "count ranks from 0"
        )
    for name in ("processes", "nodes"):
        if world_size is not None and getattr(config.cluster, name, 1) > 1:
            raise UserError(
                f"cluster.{name}={getattr(config.cluster, name)}",
                "starts ranks of its own, rank and world_size say which this one is",
                "give one or the other",
            )


def _without_state(cluster: ClusterConfig) -> None:
    if cluster.minutes is not None:
        raise UserError(
            f"cluster.minutes={cluster.minutes}",
            "is for training, which has a state to save; this command can be stopped at any time",
            "leave it out",
        )


def _tars(config: ShardCommand, source: WebDatasetSource) -> None:
    if not source.in_place:
        if source.check:
            raise UserError(
                "source.check=true",
                "does nothing without source.in_place=true: images are decoded anyway",
                "leave it out",
            )
        return
    remade = {
        "crop": config.crop is not Crop.center,
        "format": config.format is not ImageFormat.png,
        "quality": config.quality is not None,
    }
    for name in (name for name, is_set in remade.items() if is_set):
        raise UserError(
            name,
            "does nothing with source.in_place=true, which leaves the images as they are",
            "leave it out, or source.in_place",
        )


def _table(config: TableSource) -> None:
    columns, weights = config.caption_columns, config.caption_weights
    if not columns or len(set(columns)) != len(columns):
        raise UserError(
            f"source.caption_columns={columns}",
            "is empty or names a column twice",
            "give each caption column once, as [caption]",
        )
    if weights is not None and (len(weights) != len(columns) or not sum(weights)):
        raise UserError(
            f"source.caption_weights={weights}",
            f"does not weigh the {len(columns)} caption columns",
            "give one number for each, not all of them 0",
        )


def _weights(config: AutoencoderConfig | None) -> None:
    """Refuse an autoencoder that is there to be trained where one is needed that has been."""
    if isinstance(config, KLAutoencoderConfig):
        raise UserError(
            f"autoencoder={config.kind}",
            "has no weights",
            "give autoencoder=trained autoencoder.url=URL of an `ldm autoencoder` run, or "
            "autoencoder=pretrained autoencoder.path=... of another one",
        )


def _classes(config: TextEncoderConfig | None) -> None:
    """Refuse a list of classes that no denoiser could embed, or that is handled as a model."""
    if config is None:
        return
    paths = [config.path, *(one.path for one in config.joined)]
    if not any(path.startswith(CLASSES) for path in paths):
        return
    where, count = f"text_encoder.path={config.path}", config.path.removeprefix(CLASSES)
    if config.joined:
        raise UserError(
            "text_encoder.joined",
            "appends embeddings of tokens, and a class has none",
            f"leave it out, or give text models without {CLASSES}",
        )
    if not count or (count.isdecimal() and not 1 <= int(count) <= MOST_CLASSES):
        wrong = f"is no number from 1 to {MOST_CLASSES}, and no file"
        raise UserError(where, wrong, f"give {CLASSES}1000 for 1000 classes, or {CLASSES}FILE")
    plain = TextEncoderConfig(path=config.path, max_length=1)
    for name in (item.name for item in fields(plain)):
        if getattr(config, name) != getattr(plain, name):
            raise UserError(
                f"text_encoder.{name}",
                f"is of text models, and {where} is a list of classes",
                f"choose text_encoder=classes, or leave out text_encoder.{name}",
            )


def _cache(config: CacheCommand) -> None:
    if len(set(config.sizes)) != len(config.sizes):
        raise UserError(f"sizes={config.sizes}", "names a size twice", "name each once")


def _captions(config: EncodingConfig) -> None:
    if len(set(config.captions)) != len(config.captions):
        raise UserError(
            f"encoding.captions={config.captions}", "names a field twice", "name each field once"
        )


def _made(config: EvaluateCommand) -> None:
    """What is made of captions: two images at least, for the score goes by how they differ."""
    count = config.images_per_caption
    if count == 1:
        wrong = "says nothing of how images of one caption differ"
        raise UserError("images_per_caption=1", wrong, "give 2 or more, or 0 for no energy score")
    for item in fields(config.sampler) if not count else ():
        if getattr(config.sampler, item.name) != item.default:
            name = f"sampler.{item.name}"
            remedy = "give images_per_caption=2 too, or leave it out"
            raise UserError(name, "does nothing without images_per_caption", remedy)


def _audit(config: VerifyCommand) -> None:
    for name in ("images", "autoencoder", "text_encoder"):
        if getattr(config, name) is not None and not config.audit:
            raise UserError(
                name, "does nothing without audit", "give audit=64 too, or leave it out"
            )
    _weights(config.autoencoder)


def _prompts(prompts: Any) -> None:
    listed = isinstance(prompts, list)
    kinds = (str, int) if listed else (str,)  # numbers of classes are prompts too
    if not prompts or not all(type(one) in kinds for one in (prompts if listed else [prompts])):
        raise UserError(
            f"prompts={prompts}",
            "is not text",
            "give a list, prompts=['red apple','a cat'] or, of classes, [207,88], or the URL of a "
            "file",
        )


def refuse_credentials(config: Any, prefix: str = "") -> None:
    """Refuse URLs that hold a user, a password or a signature: settings are kept and shown.

    Raises:
        UserError: The first setting that does.
    """
    for item in fields(config):
        name, value = f"{prefix}{item.name}", getattr(config, item.name)
        for one in value if isinstance(value, list) else [value]:
            if is_dataclass(one):
                refuse_credentials(one, f"{name}.")
            elif isinstance(one, str) and has_credentials(one):
                raise UserError(  # the URL is not repeated here
                    f"{name}={one.partition('://')[0]}://...",
                    "holds credentials, which would be kept with the run",
                    "give them in the environment (AWS_ACCESS_KEY_ID and so on)",
                )


def _bounds(config: Any, prefix: str = "") -> None:
    """Hold every number, and every number of a list, against the bounds in the schema."""
    for item in fields(config):
        name, value = f"{prefix}{item.name}", getattr(config, item.name)
        if is_dataclass(value):
            _bounds(value, f"{name}.")
            continue
        if isinstance(value, list) and value and is_dataclass(value[0]):
            for i, one in enumerate(value):
                _bounds(one, f"{name}[{i}].")
            continue
        low, high = item.metadata.get("low"), item.metadata.get("high")
        if low is None or value is None:
            continue
        numbers = value if isinstance(value, list) else [value]
        if not numbers and item.name not in MAY_BE_EMPTY:
            raise UserError(f"{name}=[]", "is empty", "give at least one number")
        for number in numbers:
            if not math.isfinite(number) or number < low:
                raise UserError(f"{name}={value}", "is too small", f"give {low:g} or more")
            if high is not None and number > high:
                raise UserError(f"{name}={value}", "is too large", f"give {high:g} or less")
