"""Whether latents are what a training wants, and still what their origins would make."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.encoders import CLASSES, PretrainedAutoencoderConfig, TrainedAutoencoderConfig
from conf.errors import RunError, UserError
from conf.schema import TrainCommand
from data import manifest
from data.claim import SETTINGS
from data.manifest import load_manifest
from data.say import one_line, say
from data.storage import open_prefix
from data.stream import Dataset
from training.encoders import autoencoder_config, load_autoencoder, text_encoder_config
from training.engine.world import current_world
from training.models.hub import SCHEME
from training.models.text import are_classes_there, fingerprint_text_encoder, resolve_folder


@dataclass(frozen=True, slots=True)
class Origin:
    """Something that latents were made from.

    Args:
        name: What it is, in words.
        place: Where it was.
        then: Its fingerprint when the latents were made.
        is_there: Whether anything is at that place; fails if nobody can tell.
        now: Its fingerprint now.
    """

    name: str
    place: str
    then: str | None
    is_there: Callable[[], bool]
    now: Callable[[], str]


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
        wanted = load_autoencoder(config.autoencoder).fingerprint
        _same(where, "autoencoder", latents.autoencoder, wanted)
    if config.text_encoder is not None:
        wanted = fingerprint_text_encoder(config.text_encoder)
        _same(where, "text_encoder", text.encoder, wanted)
        _same(where, "text_encoder.max_length", text.max_length, config.text_encoder.max_length)
        _same(where, "text_encoder.padding", text.padding, config.text_encoder.padding)


def check_origins(dataset: Dataset) -> None:
    """Refuse latents whose images, autoencoder or text encoder have changed since; rank 0 looks.

    What is not there any more cannot be compared, which is said.

    Raises:
        UserError: One has changed, or is there and cannot be read.
    """
    if not current_world().main:
        return
    where = f"{dataset.prefix.setting}={dataset.prefix.url}"
    for name in sorted({"images", "autoencoder", "text_encoder"} - {*dataset.manifest.origins}):
        say(f"train: {where} does not say where its {name} was, which is not compared")
    for origin in origins_of(dataset):
        _compare(where, origin)


def origins_of(dataset: Dataset) -> list[Origin]:
    """What the manifest of a dataset of latents says that it was made from."""
    said, found = dataset.manifest.origins, []
    latents, text = dataset.manifest.latents, dataset.manifest.text
    assert latents is not None and text is not None
    if "images" in said:
        images = open_prefix(said["images"], "the images")
        found.append(
            Origin(
                "images",
                said["images"],
                dataset.manifest.parent,
                lambda: images.exists(manifest.NAME),
                lambda: load_manifest(images, "images").fingerprint,
            )
        )
    if "autoencoder" in said:
        weights = autoencoder_config(said["autoencoder"])
        found.append(
            Origin(
                "autoencoder",
                said["autoencoder"].get("url") or said["autoencoder"]["path"],
                latents.autoencoder,
                lambda: _is_autoencoder_there(weights),
                lambda: load_autoencoder(weights).fingerprint,
            )
        )
    if "text_encoder" in said:
        models = text_encoder_config(said["text_encoder"])
        paths = [one.path for one in (models, *models.joined)]
        found.append(
            Origin(
                "text_encoder",
                ", ".join(paths),
                text.encoder,
                lambda: all(map(_is_text_encoder_there, paths)),
                lambda: fingerprint_text_encoder(models),
            )
        )
    return found


def _compare(where: str, origin: Origin) -> None:
    remedy = "cache again, put the old one back, or take it as it is: data.check_origins=false"
    if SCHEME in origin.place:  # of a commit, which cannot change; nothing is fetched to look
        return
    try:
        there, why = origin.is_there(), "is gone"
    except (UserError, RunError) as error:
        there, why = False, str(error)
    if not there:
        what = f"what it was cached from, its {origin.name} at {origin.place}"
        say(one_line(f"train: {where} is not compared with {what}: {why}"))
        return
    try:
        now = origin.now()
    except (UserError, RunError) as error:
        wrong = f"was cached with {origin.name} at {origin.place}, which cannot be read: {error}"
        raise UserError(where, wrong, remedy) from error
    if now != origin.then:
        wrong = f"is stale: its {origin.name} at {origin.place} has changed since"
        raise UserError(where, wrong, remedy)


def _is_autoencoder_there(config: Any) -> bool:
    if isinstance(config, TrainedAutoencoderConfig):
        return open_prefix(config.url, "the autoencoder").exists(SETTINGS)
    assert isinstance(config, PretrainedAutoencoderConfig)
    return Path(config.path).exists()


def _is_text_encoder_there(path: str) -> bool:
    if path.startswith(CLASSES):
        return are_classes_there(path)
    try:
        return resolve_folder(path).is_dir()
    except UserError:
        return False


def _same(where: str, setting: str, then: Any, now: Any) -> None:
    if then != now:
        raise UserError(
            where,
            f"was made with another {setting} ({str(then)[:16]}, asked for was {str(now)[:16]})",
            f"cache with that {setting}, or leave it out to take the dataset's own",
        )
