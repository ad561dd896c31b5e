"""The autoencoders and text encoders that settings name, whoever has trained them."""

from dataclasses import asdict, dataclass
from typing import Any

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
from training.models.hub import commit_of
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
    scale = found.scale if config.scale is None else config.scale
    shift = found.shift if config.shift is None else config.shift
    return Autoencoder(found.model, found.fingerprint, scale, shift)


def autoencoder_origin(config: AutoencoderConfig) -> dict[str, Any]:
    """Where an autoencoder was found, for whoever needs it later, from any working directory."""
    if isinstance(config, TrainedAutoencoderConfig):
        url = open_prefix(config.url, "autoencoder.url").absolute
        return {"kind": config.kind, "url": url}
    assert isinstance(config, PretrainedAutoencoderConfig)
    commit = commit_of(config.path, config.revision)
    return {**asdict(config), "path": absolute_path(config.path), "revision": commit}


def autoencoder_config(origin: dict[str, Any]) -> AutoencoderConfig:
    """The settings that lead to an autoencoder again.

    Raises:
        UserError: They are none.
    """
    kinds = {"trained": TrainedAutoencoderConfig, "pretrained": PretrainedAutoencoderConfig}
    try:
        return kinds[origin["kind"]](**origin)
    except (KeyError, TypeError) as error:
        raise _unknown_origin("autoencoder", error) from error


def text_encoder_origin(config: TextEncoderConfig) -> dict[str, Any]:
    """Where text models were found, and which of their outputs are used."""
    found: dict[str, Any] = asdict(config)
    for one in (found, *found["joined"]):
        one["revision"] = commit_of(one["path"], one["revision"])
        one |= {"path": absolute_path(one["path"]), "pooled": one["pooled"].value}
    return found


def text_encoder_config(origin: dict[str, Any]) -> TextEncoderConfig:
    """The settings that lead to a text encoder again.

    Raises:
        UserError: They are none.
    """
    try:
        pooled, joined = Pooled(origin["pooled"]), []
        for one in origin["joined"]:
            joined.append(TextModelConfig(**{**one, "pooled": Pooled(one["pooled"])}))
        return TextEncoderConfig(**{**origin, "pooled": pooled, "joined": joined})
    except (KeyError, TypeError, ValueError) as error:
        raise _unknown_origin("text encoder", error) from error


def _unknown_origin(name: str, error: Exception) -> UserError:
    wrong = f"says in no known way where its {name} was ({error})"
    return UserError("the manifest of the latents", wrong, "cache them again")
