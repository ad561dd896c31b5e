"""When the parts of a start begin and end, in every process of it, the program left as it is.

A `sitecustomize` that calls `mark` is found by every interpreter, ranks' too. It waits for the
modules below to be imported, and notes in a file of the process when their functions are called.
"""

import functools
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = "BENCHMARK_MARKS"
SITE = "from benchmarks.launching.marks import mark\n\nmark()\n"
POINTS = {
    "conf.compose": "compose_config",
    "training.diffuse": "train_denoiser",
    "training.train": "train",
    "training.engine.build": "build_engine",
    "training.dry": "dry_batch",
    "training.loop": "Loop._step",
}


def mark() -> None:
    """Note the calls of this process from now on."""
    if FOLDER in os.environ:
        rank = os.environ.get("RANK", "-")
        path = Path(os.environ[FOLDER], f"{os.getpid()}-{rank}")
        _note(path, "process")
        sys.meta_path.insert(0, _Finder(path))


def read_marks(folder: Path) -> dict[str, float]:
    """The first time of each mark, of the process that trained as rank 0.

    Returns:
        Seconds since the epoch, by `process`, `NAME begin` and `NAME end`.
    """
    for path in sorted(folder.iterdir()):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        first = {name: when for name, when in reversed(lines)}
        if "Loop._step end" in first and path.name.endswith(("-0", "--")):
            return first
    raise SystemExit(f"{folder}: no process has made a step")


def _note(path: Path, name: str) -> None:
    with path.open("a") as file:
        file.write(json.dumps([name, time.time()]) + "\n")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, path: Path) -> None:
        self._path = path

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in POINTS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path, self._path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, source: str, path: Path) -> None:
        super().__init__(name, source)
        self._path = path

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        name = POINTS[module.__name__]
        *outer, last = name.split(".")
        holder = functools.reduce(getattr, outer, module)
        setattr(holder, last, self._noting(name, getattr(holder, last)))

    def _noting(self, name: str, function: Any) -> Any:
        @functools.wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            _note(self._path, f"{name} begin")
            result = function(*args, **kwargs)
            _note(self._path, f"{name} end")
            return result

        return noted
