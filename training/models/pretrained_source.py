"""What `autoencoder.path` leads to: files of weights, whose names they bear, sizes and scale.

Owns the places and layouts that are known: a diffusers folder, one file, a repository on the hub.
Refuses to read weights, and to guess between two things that may both be meant.
"""

from dataclasses import dataclass
from pathlib import Path

from conf.encoders import PretrainedAutoencoderConfig
from conf.errors import UserError
from training.models import hub
from training.models.autoencoder_sizes import Scale, Sizes, known_scale, sizes_from_shapes
from training.models.diffusers_config import published_scale, sizes_from_config
from training.models.key_maps import Spelling, spelling_of
from training.models.tiny import TinySizes
from training.models.weight_files import (
    CHECKPOINTS,
    CONVERT,
    INDEX_SUFFIX,
    WeightFile,
    open_checkpoint,
    open_safetensors,
    read_json,
    sharded,
)

STEM = "diffusion_pytorch_model"  # what diffusers calls the file of any model
HALF = f"{STEM}.fp16.safetensors"  # the same in 16 bits, where a repository has nothing better
STAGE_ONE = "first_stage_model."  # of the autoencoder's weights in a whole checkpoint
NO_PART = ("loss.", "model_ema.")  # what training leaves in a file beside the autoencoder
REMEDY = (
    "give a diffusers folder (with autoencoder.subfolder=vae where it is a whole pipeline's), a "
    ".safetensors or .ckpt file, or hf://ORG/NAME"
)
KNOWN_KINDS = "choose an AutoencoderKL or AutoencoderTiny of Stable Diffusion's kind"


@dataclass(frozen=True, slots=True)
class Source:
    """An autoencoder that was found, unread.

    Attributes:
        place: The folder or file, for messages.
        weights: The file or files, opened.
        keys: Names of the autoencoder's weights, each with its name in the file.
        spelling: Whose names those are.
        sizes: Sizes of the autoencoder.
        scale: Published scale and shift.
    """

    place: Path
    weights: WeightFile
    keys: dict[str, str]
    spelling: Spelling
    sizes: Sizes
    scale: Scale


def find_source(config: PretrainedAutoencoderConfig, setting: str) -> Source:
    """Finds the autoencoder that `config` names, and opens its files.

    Raises:
        UserError: There is none, it is damaged, or of a kind that is not known.
    """
    place = _locate(config, setting)
    try:
        return _open_folder(place, setting) if place.is_dir() else _open_file(place, setting)
    except ValueError as error:  # of its sizes
        raise UserError(setting, f"{place}: {error}", KNOWN_KINDS) from error


def _locate(config: PretrainedAutoencoderConfig, setting: str) -> Path:
    """The folder or file, fetched if it is on the hub."""
    if config.path.startswith(hub.SCHEME):
        ours = ("config.json", f"{STEM}.safetensors", f"{STEM}-*.safetensors", STEM + INDEX_SUFFIX)
        folder = hub.fetch(config.path, config.subfolder, config.revision, ours, setting)
        # Asked for by name: the hub's cache may hold more, fetched by others.
        if not any((folder / f"{STEM}{end}").is_file() for end in (".safetensors", INDEX_SUFFIX)):
            ours = ("config.json", HALF)
            folder = hub.fetch(config.path, config.subfolder, config.revision, ours, setting)
        return folder
    if "://" in config.path:
        raise UserError(setting, "is neither on this machine nor on the hub", REMEDY)
    if config.revision is not None:
        wrong = f"is a path on this machine, which has no revision {config.revision}"
        raise UserError(setting, wrong, "leave out autoencoder.revision")
    path = Path(config.path)
    if path.is_file():
        if config.subfolder is not None:
            wrong = f"is a file, which has no folder {config.subfolder}"
            raise UserError(setting, wrong, "leave out autoencoder.subfolder")
        return path
    folder = path / (config.subfolder or "")
    if not folder.is_dir():
        raise UserError(setting, f"there is no file or folder {folder}", REMEDY)
    return folder


def _open_folder(folder: Path, setting: str) -> Source:
    """Opens a diffusers folder."""
    if not (folder / "config.json").is_file():
        raise UserError(setting, f"{folder} holds no config.json", REMEDY)
    config = read_json(folder / "config.json", setting)
    sizes, scale = sizes_from_config(config), published_scale(config)
    weights = open_safetensors(_files(folder, setting), setting)
    keys = {key: key for key in weights.shapes}
    spelling = _spelling(folder, keys, setting)
    if isinstance(sizes, TinySizes) != (spelling is Spelling.tiny):
        wrong = f"{folder} holds weights that are not of the {config['_class_name']} it says"
        raise UserError(setting, wrong, "fetch config.json and weights of one model")
    return Source(folder, weights, keys, spelling, sizes, scale)


def _files(folder: Path, setting: str) -> list[Path]:
    """The files with the weights of a diffusers folder, the most precise that there are."""
    index = folder / (STEM + INDEX_SUFFIX)
    if index.is_file():
        return sharded(index, setting)
    for name in (f"{STEM}.safetensors", HALF):
        if (folder / name).is_file():
            return [folder / name]
    for file in sorted(folder.glob("*.bin")):
        raise UserError(setting, f"{file} is a pickle, which could run code", CONVERT)
    raise UserError(setting, f"{folder} holds no {STEM}.safetensors", REMEDY)


def _open_file(path: Path, setting: str) -> Source:
    """Opens a single file: an autoencoder's alone, or a whole checkpoint with one inside."""
    if path.suffix == ".safetensors":
        weights = open_safetensors([path], setting)
    elif path.suffix in CHECKPOINTS:
        weights = open_checkpoint(path, setting)
    elif path.suffix == ".bin":
        raise UserError(setting, f"{path} is a pickle, which could run code", CONVERT)
    else:
        raise UserError(setting, f"{path} is neither .safetensors nor .ckpt", REMEDY)
    whole = any(key.startswith(STAGE_ONE) for key in weights.shapes)
    prefix = STAGE_ONE if whole else ""
    keys = {
        key.removeprefix(prefix): key
        for key in weights.shapes
        if key.startswith(prefix) and not key.removeprefix(prefix).startswith(NO_PART)
    }
    spelling = _spelling(path, keys, setting)
    shapes = {key: weights.shapes[name] for key, name in keys.items()}
    try:
        sizes = sizes_from_shapes(shapes, spelling)
    except KeyError as error:
        wrong = f"{path} lacks weights, the first is {prefix}{error.args[0]}"
        raise UserError(setting, wrong, "fetch the file again") from error
    return Source(path, weights, keys, spelling, sizes, known_scale(sizes, weights.shapes))


def _spelling(place: Path, keys: dict[str, str], setting: str) -> Spelling:
    spelling = spelling_of(keys)
    if spelling is None:
        first = f"; its first weight is {next(iter(keys))}" if keys else ""
        raise UserError(setting, f"{place} holds no autoencoder{first}", REMEDY)
    return spelling
