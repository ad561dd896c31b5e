"""What latents and captions mean: made here for caches and for training on images, and kept."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from conf.encoding import EncodingConfig
from conf.enums import EncodingPrecision, LatentDtype, LatentScale
from conf.errors import RunError, UserError
from data.manifest import canonical_json, parse_record, square_side
from data.spec import LatentSpec, TextSpec, parse_spec
from data.storage import Prefix
from data.stream import Dataset
from data.views import view_names
from training.encoders import Autoencoder
from training.models.text import TextEncoder

MEANING = "meaning.json"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What latents and captions mean, and where what made them was found.

    Args:
        latents: What the latents mean.
        text: What the captions mean.
        origins: `autoencoder` and `text_encoder` as the settings that lead to them.
        precision: In what the encoders computed.
    """

    latents: LatentSpec
    text: TextSpec
    origins: Mapping[str, Any]
    precision: EncodingPrecision = EncodingPrecision.fp32

    @property
    def captions(self) -> EncodingConfig:
        """The settings that give a caption the bits that it has there."""
        return EncodingConfig(precision=self.precision, dtype=LatentDtype(self.text.dtype))


def meaning_of(dataset: Dataset) -> Meaning:
    """What a dataset of latents means."""
    manifest = dataset.manifest
    assert manifest.latents is not None and manifest.text is not None
    said = manifest.settings.get("encoding")
    coarse = isinstance(said, dict) and said.get("precision") == EncodingPrecision.bf16.value
    precision = EncodingPrecision.bf16 if coarse else EncodingPrecision.fp32
    return Meaning(manifest.latents, manifest.text, manifest.origins, precision)


def meaning_json(meaning: Meaning) -> bytes:
    """What a run's images are encoded to, which no dataset says."""
    specs = {"latents": asdict(meaning.latents), "text": asdict(meaning.text)}
    precision = meaning.precision.value
    return canonical_json({**specs, "origins": meaning.origins, "precision": precision})


def kept_meaning(out: Prefix) -> Meaning:
    """What a run's images were encoded to.

    Raises:
        UserError: The file is missing or damaged.
    """
    where, remedy = f"{out.url}/{MEANING}", "run its `ldm train` command again"
    try:
        raw = parse_record(out.read(MEANING), where, remedy)
        latents, text = parse_spec(LatentSpec, raw["latents"]), parse_spec(TextSpec, raw["text"])
        assert latents is not None and text is not None
        return Meaning(latents, text, raw["origins"], EncodingPrecision(raw["precision"]))
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise UserError(where, f"is missing or damaged ({error})", remedy) from error


def latent_spec(
    encoding: EncodingConfig,
    autoencoder: Autoencoder,
    buckets: tuple[tuple[int, int], ...],
    measured: Mapping[str, Any],
    skipped: int = 0,
) -> LatentSpec:
    """What latents mean.

    Args:
        encoding: How they are made.
        autoencoder: By what.
        buckets: Height and width in pixels of the images.
        measured: `mean` and `std`, and whatever else was measured of them.
        skipped: Samples of the images that are missing among them.

    Raises:
        UserError: The scale that is asked for is not known.
        RunError: There is none.
    """
    model = autoencoder.model
    shift, scale = scaling(encoding.scale, autoencoder, measured)
    return LatentSpec(
        channels=model.latent_channels,
        size=square_side(buckets) // model.downsampling,
        downsampling=model.downsampling,
        dtype=encoding.dtype.value,
        autoencoder=autoencoder.fingerprint,
        shift=shift,
        scale=scale,
        stored=encoding.store.value,
        scaling=encoding.scale.value,
        views=view_names(encoding),
        skipped=skipped,
        **measured,
    )


def text_spec(text_encoder: TextEncoder, encoding: EncodingConfig, captions: int) -> TextSpec:
    """What captions mean, but for the hashes of the empty one; a sample has `captions` at most."""
    return TextSpec(
        encoder=text_encoder.fingerprint,
        width=text_encoder.width,
        max_length=text_encoder.max_length,
        dtype=encoding.dtype.value,
        empty_sha256="",
        stored=encoding.text.value,
        captions=captions,
        padding=text_encoder.padding,
        pooled_width=text_encoder.pooled_width,
        models=len(text_encoder.tokenize([""]).ids[0]),
        classes=text_encoder.classes,
    )


def check_scale(kind: LatentScale, autoencoder: Autoencoder) -> None:
    """Refuse a scale that is not known; whoever encodes images asks before the work starts.

    Raises:
        UserError: The autoencoder's makers have published none.
    """
    if kind is LatentScale.published and autoencoder.scale is None:
        raise UserError(
            "encoding.scale=published",
            "is not known of this autoencoder",
            "choose encoding.scale=measured",
        )


def scaling(
    kind: LatentScale, autoencoder: Autoencoder, measured: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shift and scale per channel that make a final latent.

    Raises:
        UserError: None is published.
        RunError: A channel has no spread.
    """
    channels = autoencoder.model.latent_channels
    check_scale(kind, autoencoder)
    if kind is LatentScale.published:
        assert autoencoder.scale is not None
        return (autoencoder.shift or 0.0,) * channels, (autoencoder.scale,) * channels
    if not all(std > 0 for std in measured["std"]):
        raise RunError("a channel of the latents is the same everywhere: it cannot be scaled")
    return measured["mean"], tuple(1 / std for std in measured["std"])
