"""Text models from disk, as the settings name them, and what is refused of them."""

from hashlib import sha256
from json import dumps
from typing import Any

from conf.encoders import CLASSES, TextEncoderConfig, TextModelConfig
from conf.enums import Pooled
from conf.errors import UserError
from training.models.text.checks import MISSING, Refused
from training.models.text.classes import load_classes
from training.models.text.encoder import TextEncoder
from training.models.text.records import TextModel
from training.models.text.source import (
    OPEN_CLIP,
    REMEDY,
    Folders,
    fingerprint_folder,
    locate,
    weight_files,
)

# Joined models are tried on these before hours go into a caption that they disagree on.
PROBES = ["", "A photo of two cats, 1980s style: it's café-like!", "supercalifragilistic x" * 9]


def load_text_encoder(config: TextEncoderConfig, setting: str = "text_encoder") -> TextEncoder:
    """Loads the text encoder that `config` names, in float32, on the CPU.

    Args:
        config: One text model, or several.
        setting: Where `config` stands among the settings, for messages.

    Raises:
        UserError: There is no such folder, or what it holds cannot be used.
    """
    settings = [setting, *(f"{setting}.joined[{i}]" for i in range(len(config.joined)))]
    parts = [config, *config.joined]
    models = [_load(part, name) for part, name in zip(parts, settings, strict=True)]
    for model, name in zip(models, settings, strict=True):
        _check_length(config.max_length, model, setting)
        if config.padding and model.tokenizer.pad_id is None:
            wrong = f"the tokenizer of {name} names nothing to fill with"
            raise UserError(f"{setting}.padding=true", wrong, "choose padding=false")
    fingerprint = _fingerprint(config, [model.fingerprint for model in models])
    encoder = TextEncoder(models, config.max_length, config.padding, fingerprint, setting)
    if not encoder.classes:
        encoder.tokenize(PROBES)
    return encoder


def fingerprint_text_encoder(config: TextEncoderConfig, setting: str = "text_encoder") -> str:
    """The fingerprint that `load_text_encoder` would give, from the files alone.

    Raises:
        UserError: They are not there.
    """
    settings = [setting, *(f"{setting}.joined[{i}]" for i in range(len(config.joined)))]
    files = []
    for part, name in zip([config, *config.joined], settings, strict=True):
        if part.path.startswith(CLASSES):
            files.append(load_classes(part.path, name).fingerprint)
            continue
        folders = locate(part, name)
        try:
            files.append(fingerprint_folder(folders.model, folders.tokenizer))
        except (OSError, ValueError) as error:
            raise _unreadable(error, f"{name}.path={part.path}", folders) from error
    return _fingerprint(config, files)


def _load(config: TextModelConfig, setting: str) -> TextModel:
    """One text model with its tokenizer, or a list of classes."""
    if config.path.startswith(CLASSES):
        return load_classes(config.path, setting)
    # Here, for they take four seconds to import: training on stored embeddings needs none of them.
    from training.models.text.open_clip_models import load_open_clip
    from training.models.text.tokenizers import load_tokenizer
    from training.models.text.transformers_models import load_transformers

    folders = locate(config, setting)
    where = f"{setting}.path={config.path}"
    try:
        weights = weight_files(folders.model)
        if not weights:
            raise Refused(None, "holds no *.safetensors file that is a model's own", REMEDY)
        if [file.name for file in weights] == [OPEN_CLIP]:
            tower, tokenizer = load_open_clip(folders.model, weights, config)
        else:
            tower = load_transformers(folders.model, weights, config)
            tokenizer = load_tokenizer(folders.tokenizer)
        files = fingerprint_folder(folders.model, folders.tokenizer)
    except Refused as error:
        if error.name is None:
            raise UserError(where, f"{folders.model} {error.wrong}", error.remedy) from None
        value: Any = getattr(config, error.name)
        name = f"{setting}.{error.name}={value.value if isinstance(value, Pooled) else value}"
        raise UserError(name, error.wrong, error.remedy) from None
    except Exception as error:  # of a dozen kinds: their own checks, json's, safetensors'
        raise _unreadable(error, where, folders) from error
    if tokenizer.largest_id >= tower.num_ids:
        wrong = f"knows {tower.num_ids} token ids, its tokenizer gives {tokenizer.largest_id}"
        raise UserError(where, f"{folders.model} {wrong}", "put them of one model together")
    return TextModel(
        tower=tower,
        tokenizer=tokenizer,
        width=tower.width,
        pooled_width=tower.pooled_width,
        most=tower.most,
        fingerprint=files,
    )


def _unreadable(error: Exception, where: str, folders: Folders) -> UserError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if reason == MISSING:
        remedy = "put its tokenizer's files there, or name a repository with subfolder=text_encoder"
        return UserError(where, f"{folders.tokenizer} {MISSING}", remedy)
    return UserError(where, f"{folders.model} cannot be loaded: {reason}", REMEDY)


def _check_length(max_length: int, model: TextModel, setting: str) -> None:
    """Refuses lengths that leave no room for a word or that a model has no positions for."""
    least, tokenizer_most = model.tokenizer.least, model.tokenizer.most
    # Where a model has no positions, its tokenizer's longest length is a habit and no limit.
    limits = [most for most in (model.most, tokenizer_most) if most] if model.most else []
    if max_length < least or any(max_length > most for most in limits):
        to = f"{least} to {min(limits)}" if limits else f"{least} or more"
        raise UserError(
            f"{setting}.max_length={max_length}",
            f"the model takes {to} tokens",
            f"choose a length of {to}",
        )


def _fingerprint(config: TextEncoderConfig, files: list[str]) -> str:
    """SHA-256 of what the numbers follow from; the files' own where no setting changes them."""
    parts = [
        {
            "files": one,
            "layer": part.layer,
            # The last layer has its norm anyway.
            "layer_norm": part.layer_norm and part.layer < -1,
            "pooled": part.pooled.value,
        }
        for part, one in zip([config, *config.joined], files, strict=True)
    ]
    usual = {"layer": -1, "layer_norm": False, "pooled": Pooled.none.value}
    if len(files) == 1 and not config.padding and parts[0] == {**parts[0], **usual}:
        return files[0]
    content = {"models": parts, "padding": config.padding}
    return sha256(dumps(content, sort_keys=True).encode()).hexdigest()
