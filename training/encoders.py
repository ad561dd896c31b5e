"""The autoencoders and text encoders that settings name, whoever has trained them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from conf.encoders import (
    AutoencoderConfig,
    PretrainedAutoencoderConfig,
    TextEncoderConfig,
    TextModelConfig,
    TrainedAutoencoderConfig,
)
from conf.enums import Pooled
from conf.errors import UserError
from data.storage import open_prefix
from training.autoencode import load_trained_autoencoder
from training.models.autoencoder import KLAutoencoder
from training.models.pretrained import load_pretrained_autoencoder
from training.models.text import absolute_path
from training.models.tiny import TinyAutoencoder

AnyAutoencoder = KLAutoencoder | TinyAutoencoder


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """An autoencoder that is ready to encode and decode.

    Args:
        model: In evaluation mode.
        fingerprint: Hash of its sizes and weights.
        scale: What its makers multiply latents with; None if they do not say.
        shift: What they subtract before.
    """

    model: AnyAutoencoder
    fingerprint: str
    scale: float | None = None
    shift: float | None = None


def load_autoencoder(config: AutoencoderConfig, setting: str = "autoencoder") -> Autoencoder:
    """Load what a configuration names.

    Args:
        config: Of a trained or pretrained one.
        setting: The setting that holds it, for messages.

    Raises:
        UserError: It is not there, or cannot be used.
    """
    if isinstance(config, TrainedAutoencoderConfig):
        model, fingerprint = load_trained_autoencoder(config.url, f"{setting}.url")
        return Autoencoder(model, fingerprint)
    assert isinstance(config, PretrainedAutoencoderConfig)
    found = load_pretrained_autoencoder(config)
    return Autoencoder(found.model, found.fingerprint, found.scale, found.shift)


def check_sizes(model: nn.Module, buckets: Iterable[tuple[int, int]], setting: str) -> None:
    """Refuse images that the autoencoder cannot halve as often as it has to.

    Raises:
        UserError: A side is no multiple of the downsampling factor.
    """
    factor = model.downsampling
    for height, width in buckets:
        if height % factor or width % factor:
            near = max(1, round(height / factor)) * factor
            raise UserError(
                setting,
                f"has images of {height}x{width} pixels, and the autoencoder divides by {factor}",
                f"shard again with sizes that are multiples of {factor}, such as {near}",
            )


def autoencoder_origin(config: AutoencoderConfig) -> dict[str, Any]:
    """Where an autoencoder was found, for whoever needs it later, from any working directory."""
    if isinstance(config, TrainedAutoencoderConfig):
        url = open_prefix(config.url, "autoencoder.url").absolute
        return {"kind": config.kind, "url": url}
    assert isinstance(config, PretrainedAutoencoderConfig)
    return {**asdict(config), "path": absolute_path(config.path)}


def autoencoder_config(origin: dict[str, Any]) -> AutoencoderConfig:
    """The settings that lead to an autoencoder again."""
    kinds = {"trained": TrainedAutoencoderConfig, "pretrained": PretrainedAutoencoderConfig}
    return kinds[origin["kind"]](**origin)


def text_encoder_origin(config: TextEncoderConfig) -> dict[str, Any]:
    """Where text models were found, and which of their outputs are used."""
    found: dict[str, Any] = asdict(config)
    for one in (found, *found["joined"]):
        one |= {"path": absolute_path(one["path"]), "pooled": one["pooled"].value}
    return found


def text_encoder_config(origin: dict[str, Any]) -> TextEncoderConfig:
    """The settings that lead to a text encoder again."""
    pooled, joined = Pooled(origin["pooled"]), []
    for one in origin["joined"]:
        joined.append(TextModelConfig(**{**one, "pooled": Pooled(one["pooled"])}))
    return TextEncoderConfig(**{**origin, "pooled": pooled, "joined": joined})
