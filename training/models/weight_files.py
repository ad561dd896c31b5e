"""Files of weights, opened without reading them and without running anything of theirs.

Owns the two formats, safetensors and torch's own, and how damage is named; refuses to know what the
weights are of. A pickle goes through torch's own reader of tensors alone.
"""

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from conf.errors import UserError

INDEX_SUFFIX = ".safetensors.index.json"
CHECKPOINTS = (".ckpt", ".pt", ".pth")
REMEDY = "fetch the file again"
CONVERT = (
    "convert it to safetensors where you trust it: "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=False), ...)"
)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """Weights by name, read one at a time.

    Attributes:
        shapes: Shape of every weight.
        read: Gives the weight of that name as float32, in memory of its own.
    """

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]


def open_safetensors(paths: Sequence[Path], setting: str) -> WeightFile:
    """Opens one or several safetensors files that have no name in common.

    Raises:
        UserError: A file is damaged.
    """
    shapes, holders = {}, {}
    for path in paths:
        try:
            file = safe_open(path, framework="pt", device="cpu")
            for name in file.keys():  # noqa: SIM118  it is no mapping
                shapes[name] = tuple(file.get_slice(name).get_shape())
                holders[name] = file
        except (SafetensorError, OSError) as error:
            raise UserError(setting, f"{path} is damaged: {_line(error)}", REMEDY) from error

    def read(name: str) -> Tensor:
        try:
            return _float32(holders[name].get_tensor(name), name, setting)
        except (SafetensorError, OSError) as error:
            wrong = f"{name} cannot be read: {_line(error)}"
            raise UserError(setting, wrong, REMEDY) from error

    return WeightFile(shapes, read)


def sharded(index: Path, setting: str) -> list[Path]:
    """The files that a `.safetensors.index.json` names; all of them are there.

    Raises:
        UserError: It is no index, or names files elsewhere or that are missing.
    """
    names = read_json(index, setting).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(setting, f"{index} has no weight_map of files", REMEDY)
    files = sorted(set(names.values()))
    for name in files:
        # A file elsewhere would be read, should the index say so.
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(setting, f"{index} names {name!r}, no file beside it", REMEDY)
        if not (index.parent / name).is_file():
            raise UserError(
                setting, f"{index.parent} lacks {name}, which {index.name} names", REMEDY
            )
    return [index.parent / name for name in files]


def read_json(path: Path, setting: str) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        UserError: It holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(setting, f"{path} is no JSON: {_line(error)}", REMEDY) from error
    if not isinstance(content, dict):
        raise UserError(setting, f"{path} holds no JSON object", REMEDY)
    return content


def open_checkpoint(path: Path, setting: str) -> WeightFile:
    """Opens what `torch.save` wrote: a dict of tensors, or one with a `state_dict` inside.

    Raises:
        UserError: It is damaged, or holds what only running its code would load.
    """
    try:
        # Only torch's zip files can be mapped into memory; older ones are read whole.
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings(action="ignore"):  # an odd pickle is refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        wrong = f"{path} holds more than tensors, or is damaged; none of its code was run"
        raise UserError(setting, wrong, CONVERT) from error
    except Exception as error:  # whatever a damaged pickle leads to
        raise UserError(setting, f"{path} cannot be read: {_line(error)}", REMEDY) from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict):
        raise UserError(setting, f"{path} holds no dict of weights", CONVERT)
    tensors = {
        name: tensor
        for name, tensor in content.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return WeightFile(shapes, lambda name: _float32(tensors[name], name, setting))


def _float32(tensor: Tensor, name: str, setting: str) -> Tensor:
    """A copy, which stays as it is when the file changes under a map of it."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not (plain and tensor.is_floating_point()):
        raise UserError(
            setting,
            f"{name} is {tensor.dtype} ({tensor.layout}), no dense floating-point weight",
            "give weights that are not quantised",
        )
    return tensor.detach().to(torch.float32, copy=True)


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
