"""What a dataset of latents was made from, found again, before anything else is done."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.encoders import AutoencoderConfig, TextEncoderConfig
from conf.encoding import EncodingConfig
from conf.errors import UserError
from conf.schema import VerifyCommand
from data.manifest import Manifest
from data.spec import LatentSpec, TextSpec
from data.stream import Dataset, open_dataset
from training.encoders import (
    Autoencoder,
    autoencoder_config,
    load_autoencoder,
    text_encoder_config,
)
from training.models.text import TextEncoder, load_text_encoder


@dataclass(frozen=True, slots=True)
class Material:
    """A dataset of latents and what it was made from.

    Args:
        latents: The dataset.
        latent_spec: What its latents mean.
        text_spec: What its captions mean.
        images: The images.
        autoencoder: What has encoded them.
        text_encoder: What has encoded the captions.
        encoding: What was kept of either.
    """

    latents: Dataset
    latent_spec: LatentSpec
    text_spec: TextSpec
    images: Dataset
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    encoding: EncodingConfig


@dataclass(frozen=True, slots=True)
class _Places:
    """The settings that lead to what a dataset was made from."""

    images: str
    autoencoder: AutoencoderConfig
    text_encoder: TextEncoderConfig
    encoding: EncodingConfig


def open_material(config: VerifyCommand) -> Material:
    """Find the dataset, its images and its encoders, which are loaded.

    Raises:
        UserError: It is no dataset of latents, or what it was made from is not there.
    """
    latents = open_dataset(config.data.url, "latents")
    manifest = latents.manifest
    assert manifest.latents is not None and manifest.text is not None
    places = _places(config, manifest)
    length, padding = manifest.text.max_length, manifest.text.padding
    text_encoder = replace(places.text_encoder, max_length=length, padding=padding)
    setting = "data.url of the cache" if config.images is None else "images"
    return Material(
        latents,
        manifest.latents,
        manifest.text,
        open_dataset(places.images, "images", setting),
        load_autoencoder(places.autoencoder),
        load_text_encoder(text_encoder),
        places.encoding,
    )


def changed(material: Material) -> Iterator[str]:
    """What is no longer what the dataset was made from."""
    for name, now, then in (
        ("images", material.images.manifest.fingerprint, material.latents.manifest.parent),
        ("autoencoder", material.autoencoder.fingerprint, material.latent_spec.autoencoder),
        ("text encoder", material.text_encoder.fingerprint, material.text_spec.encoder),
    ):
        if now != then:
            was = f"it is {now[:12]}, was {str(then)[:12]}"
            yield f"{name}: not what the latents were made from ({was})"


def same_encoders(material: Material) -> bool:
    """Whether the encoders are those of the dataset; nothing can be compared with others'."""
    return (
        material.autoencoder.fingerprint == material.latent_spec.autoencoder
        and material.text_encoder.fingerprint == material.text_spec.encoder
    )


def _places(config: VerifyCommand, manifest: Manifest) -> _Places:
    """As the command says; what it leaves out is where it was."""
    said = manifest.origins
    schema = OmegaConf.structured(EncodingConfig)
    try:
        encoding = OmegaConf.to_object(OmegaConf.merge(schema, manifest.settings["encoding"]))
        assert isinstance(encoding, EncodingConfig)
        return _Places(
            config.images or said["images"],
            config.autoencoder or autoencoder_config(said["autoencoder"]),
            config.text_encoder or text_encoder_config(said["text_encoder"]),
            encoding,
        )
    except (KeyError, TypeError, ValueError, OmegaConfBaseException) as error:
        raise UserError(
            f"data.url={config.data.url}",
            "does not say what it was made from",
            "give images=, autoencoder= and text_encoder=, cache again, or leave audit out",
        ) from error
