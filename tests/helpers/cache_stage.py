"""Everything that a small cache is made of, in a folder of a test's own, to be changed at will."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.manifest import Manifest, sha256
from tests.helpers import latents
from tests.helpers.caches import run_cache
from tests.helpers.raw_images import write_raw
from tests.helpers.tiny_bert import tiny_bert
from training.engine.commit import COMMIT, seal, unseal

SHARDS = (5, 4)


@dataclass(frozen=True)
class Stage:
    """A folder with `images`, `autoencoder`, `bert` and, once it is made, `latents` and `run`."""

    folder: Path

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def autoencoder(self) -> Path:
        return self.folder / "autoencoder"

    @property
    def bert(self) -> Path:
        return self.folder / "bert"

    @property
    def latents(self) -> Path:
        return self.folder / "latents"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def cache(self, *more: str) -> Manifest:
        """`ldm cache`; the later of two equal settings counts."""
        text = (f"text_encoder.path={self.bert}", "text_encoder.max_length=16")
        return run_cache(self.images, self.autoencoder, self.latents, *text, *more)[0]

    def train(self, *more: str) -> None:
        """`ldm train` on its cache, three steps long."""
        latents.train_small(self.latents, self.run, *more)

    def write_images(
        self,
        shards: Sequence[int] = SHARDS,
        change: Callable[[int], dict[str, Any]] = lambda number: {},
        **more: Any,
    ) -> None:
        """Makes the images anew, other ones if `change` says so."""
        shutil.rmtree(self.images, ignore_errors=True)
        write_raw(self.images, shards, change, **more)


def build_stage(folder: Path, autoencoder: Path) -> Stage:
    """A stage with a copy of an autoencoder."""
    stage = Stage(folder)
    stage.write_images()
    shutil.copytree(autoencoder, stage.autoencoder)
    tiny_bert(stage.bert)
    return stage


def flip_byte(file: Path, place: int = -1) -> None:
    """Changes one byte of a file, the last one unless told otherwise."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def edit_json(file: Path, change: Callable[[Any], None]) -> None:
    """Changes a JSON file in place."""
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))


def weights_of(run: Path) -> Path:
    """The averaged weights of a run, in its only checkpoint."""
    (found,) = run.glob("checkpoints/*/ema-*.safetensors")
    return found


def flip_weights(run: Path) -> None:
    """Changes one byte of a run's averaged weights, and has its commit pin them as they are."""
    file = weights_of(run)
    flip_byte(file)

    record = file.parent / COMMIT
    commit = unseal(record.read_bytes())
    commit["files"][file.name]["sha256"] = sha256(file.read_bytes())
    record.write_bytes(seal(commit))
