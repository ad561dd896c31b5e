"""Whether latents are what a training wants, and still what their origins would make."""

from collections.abc import Callable
from typing import Any

from conf.errors import RunError, UserError
from conf.schema import TrainCommand
from data.manifest import load_manifest
from data.say import one_line, say
from data.storage import open_prefix
from data.stream import Dataset
from training.encoders import (
    autoencoder_config,
    load_autoencoder,
    text_encoder_config,
)
from training.engine.world import current_world
from training.models.text import fingerprint_text_encoder


def check_wanted(config: TrainCommand, dataset: Dataset) -> None:
    """Refuse latents that are not made with the autoencoder and text encoder that are asked for.

    Rank 0 looks, for all.

    Raises:
        UserError: They are made with others.
    """
    if not current_world().main:
        return
    latents, text = dataset.manifest.latents, dataset.manifest.text
    assert latents is not None and text is not None
    where = f"{dataset.prefix.setting}={dataset.prefix.url}"
    if config.autoencoder is not None:
        _same(where, "autoencoder", latents.autoencoder, _autoencoder(config.autoencoder))
    if config.text_encoder is not None:
        _same(where, "text_encoder", text.encoder, _text_encoder(config.text_encoder))
        _same(where, "text_encoder.max_length", text.max_length, config.text_encoder.max_length)
        _same(where, "text_encoder.padding", text.padding, config.text_encoder.padding)


def check_origins(dataset: Dataset) -> None:
    """Refuse latents whose images, autoencoder or text encoder have changed since; rank 0 looks.

    What is not there any more cannot be compared, which is said.

    Raises:
        UserError: One has changed.
    """
    if not current_world().main:
        return
    manifest, origins = dataset.manifest, dataset.manifest.origins
    assert manifest.latents is not None and manifest.text is not None
    where = f"{dataset.prefix.setting}={dataset.prefix.url}"

    def images() -> str:
        return load_manifest(open_prefix(origins["images"], "images"), "images").fingerprint

    def autoencoder() -> str:
        return _autoencoder(autoencoder_config(origins["autoencoder"]))

    def text_encoder() -> str:
        return _text_encoder(text_encoder_config(origins["text_encoder"]))

    for name, then, now in (
        ("images", manifest.parent, images),
        ("autoencoder", manifest.latents.autoencoder, autoencoder),
        ("text_encoder", manifest.text.encoder, text_encoder),
    ):
        if name in origins:
            _compare(where, name, origins[name], then, now)


def _compare(where: str, name: str, origin: Any, then: str | None, now: Callable[[], str]) -> None:
    place = origin if isinstance(origin, str) else origin.get("url") or origin.get("path")
    try:
        found = now()
    except (UserError, RunError) as error:
        what = f"the {name} of {where} cannot be compared with what was cached"
        say(one_line(f"train: {what}: {error}"))
        return
    if found != then:
        raise UserError(
            where,
            f"is stale: its {name} at {place} has changed since",
            "cache again, put the old one back, or take it as it is: data.check_origins=false",
        )


def _same(where: str, setting: str, then: Any, now: Any) -> None:
    if then != now:
        raise UserError(
            where,
            f"was made with another {setting} ({str(then)[:16]}, asked for was {str(now)[:16]})",
            f"cache with that {setting}, or leave it out to take the dataset's own",
        )


def _autoencoder(config: Any) -> str:
    return load_autoencoder(config).fingerprint


def _text_encoder(config: Any) -> str:
    return fingerprint_text_encoder(config)
