"""Datasets that are damaged, or made wrong on purpose and pinned as if they were right."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.groups import DatasetConfig
from conf.schema import VerifyCommand
from data.arrays import dump_array
from data.manifest import EMPTY_TEXT, NAME, Manifest, parse_manifest, sha256
from data.verify import verify


def run_verify(url: Path | str, **settings: Any) -> int:
    """`ldm verify` in this process."""
    return verify(VerifyCommand(data=DatasetConfig(url=str(url)), **settings))


def manifest_of(folder: Path) -> Manifest:
    """The manifest of a local dataset."""
    return parse_manifest((folder / NAME).read_bytes(), "a test")


def repin(folder: Path, **changes: Any) -> Manifest:
    """Have the manifest pin the files as they now are, and say what `changes` say."""
    manifest = replace(manifest_of(folder), **changes)
    tars = folder if manifest.tars is None else Path(manifest.tars)
    shards = tuple(
        replace(
            shard,
            bytes=(tars / shard.tar).stat().st_size,
            sha256=sha256((tars / shard.tar).read_bytes()),
            index_sha256=sha256((folder / shard.index).read_bytes()),
        )
        for shard in manifest.shards
    )
    manifest = replace(manifest, shards=shards)
    if manifest.text:
        pinned = sha256((folder / EMPTY_TEXT).read_bytes())
        manifest = replace(manifest, text=replace(manifest.text, empty_sha256=pinned))
    (folder / NAME).write_bytes(manifest.to_json())
    return manifest


def change_index(
    folder: Path, number: int, change: Callable[[NDArray[np.void]], NDArray[np.void] | None]
) -> None:
    """Change a shard's index, in place or for another, and pin it."""
    file = folder / manifest_of(folder).shards[number].index
    index = np.load(file)
    changed = change(index)
    file.write_bytes(dump_array(index if changed is None else changed))
    repin(folder)
