"""Torchvision beside a torch that its binary does not fit, such as the CPU build.

open_clip imports torchvision, and so do transformers and diffusers where it is installed. Its
import fails where its binary cannot load, because it describes two operators that only the binary
defines. No model of ours calls them: they get a name here and no body. Where the binary loads,
nothing is done.
"""

import importlib.util
from functools import cache
from pathlib import Path

import torch

SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
NAMES = ("nms", "qnms")


@cache  # keeps what it returns alive: the names vanish with the library object
def define_missing_operators() -> torch.library.Library | None:
    """Makes `import torchvision` work; to be called before anything imports it.

    Returns:
        What holds the names, or None where there was nothing to do.
    """
    # Found without being imported: its import is what would fail.
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or all(_is_defined(name) for name in NAMES):
        return None
    try:
        for binary in Path(spec.origin).parent.glob("_C.*"):
            torch.ops.load_library(binary)
            return None
    except OSError:
        pass
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in NAMES:
        if not _is_defined(name):
            library.define(name + SIGNATURE)
    return library


def _is_defined(name: str) -> bool:
    try:
        return bool(getattr(torch.ops.torchvision, name))
    except AttributeError:
        return False
