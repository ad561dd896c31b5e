"""A small dataset of random latents, and small trainings on it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conf.compose import compose_config
from data.arrays import dump_array
from data.manifest import EMPTY_TEXT, Manifest, sha256
from data.sample import META, MOMENTS, TEXT, RawSample
from data.shard import begin_dataset, commit_dataset, commit_shard
from data.spec import LatentSpec, TextSpec
from data.storage import open_prefix
from training.diffuse import train_denoiser
from training.engine.checkpoint import Checkpoint, latest_checkpoint
from training.engine.pieces import OPTIMIZER

CHANNELS, SIZE, WIDTH = 4, 8, 12
SQUARE = (8 * SIZE, 8 * SIZE)
SMALL_UNET = (
    "unet.channels=16",
    "unet.channel_mult=[1,2]",
    "unet.res_blocks=1",
    "unet.attention_levels=[1]",
    "unet.head_channels=8",
    "unet.norm_groups=4",
    "unet.dropout=0.1",
)


def write_latents(
    folder: Path | str,
    shards: Iterable[int] = (20, 17),
    seed: int = 0,
    buckets: tuple[tuple[int, int], ...] = (SQUARE,),
    nan_in: str = "",
) -> Manifest:
    """Writes a dataset of latents with as many samples a shard as told, of all buckets in turn.

    The sample of the key `nan_in` has moments that are not finite.
    """
    out, chance = open_prefix(str(folder), "out"), np.random.default_rng(seed)
    begin_dataset(out, {"kind": "latents", "seed": seed})
    entries = [
        commit_shard(
            out,
            f"{i:05d}",
            _samples(chance, i, count, buckets, nan_in),
            (MOMENTS, TEXT, META),
            len(buckets),
        )
        for i, count in enumerate(shards)
    ]
    empty = dump_array(chance.standard_normal((2, WIDTH)).astype(np.float16))
    out.write(EMPTY_TEXT, empty)
    per_channel = (1.0,) * CHANNELS
    manifest = Manifest(
        kind="latents",
        buckets=buckets,
        members=(MOMENTS, TEXT, META),
        shards=tuple(entry.shard for entry in entries),
        identity="of a test",
        settings={"seed": seed},
        latents=LatentSpec(
            channels=CHANNELS,
            size=SIZE,
            downsampling=8,
            dtype="float16",
            autoencoder="none",
            mean=(0.0,) * CHANNELS,
            std=per_channel,
            shift=(0.0,) * CHANNELS,
            scale=per_channel,
        ),
        text=TextSpec("none", WIDTH, 77, "float16", sha256(empty)),
    )
    commit_dataset(out, manifest)
    return manifest


def _samples(
    chance: np.random.Generator,
    shard: int,
    count: int,
    buckets: tuple[tuple[int, int], ...],
    nan_in: str,
) -> Iterable[RawSample]:
    for i in range(count):
        height, width = buckets[i % len(buckets)]
        moments = chance.standard_normal((2 * CHANNELS, height // 8, width // 8))
        moments[CHANNELS:] -= 4
        if f"{shard}-{i:03d}" == nan_in:
            moments[:] = np.nan
        text = chance.standard_normal((int(chance.integers(1, 6)), WIDTH))
        arrays = {MOMENTS: moments, TEXT: text}
        members = {name: dump_array(value.astype(np.float16)) for name, value in arrays.items()}
        yield RawSample(f"{shard}-{i:03d}", {**members, META: b"{}"}, i % len(buckets))


def train_small(latents: Path, out: Path, *overrides: str) -> None:
    """`ldm train` of a small UNet in this process; the later of two equal settings counts."""
    settings = [
        *SMALL_UNET,
        f"data.url={latents}",
        f"out={out}",
        "tracking.kind=off",
        "train.ema_half_life=20",
        "optimizer.warmup_samples=1",
        "batch_size=8",
        "train.samples=24",
        "engine.precision=fp32",
        *overrides,
    ]
    last = {setting.partition("=")[0]: setting for setting in settings}
    train_denoiser(compose_config("train", list(last.values())))


def checkpoint_of(run: Path) -> Checkpoint:
    """The newest whole checkpoint of a run."""
    checkpoint = latest_checkpoint(open_prefix(str(run), "out"))
    assert checkpoint is not None
    return checkpoint


def adam_moments(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Both moments of every parameter, flat, from all ranks' files, as `PARAMETER|MOMENT`."""
    runs = checkpoint.runs(OPTIMIZER)
    return {f"{name}|{state}": _joined(parts) for (name, state), parts in runs.items()}


def _joined(parts: list[tuple[int, Tensor]]) -> Tensor:
    parts = sorted(parts, key=lambda part: part[0])
    end = 0
    for start, tensor in parts:
        assert start == end, "pieces overlap or leave a gap"
        end += len(tensor)
    return torch.cat([tensor for _, tensor in parts])


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    """All tensors are the same, bit for bit."""
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """All tensors are the same up to the order of summation.

    Sums of float32 in another order differ by some 1e-7 of their largest terms; over a few steps,
    and with convolutions in another memory layout, by about 1e-5 of a tensor's largest value, and
    by twice as much where it is a square, as Adam's second moments are.
    """
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        limit = 3e-5 * float(value.abs().max())
        assert float((got[name] - value).abs().max()) <= limit, name


def assert_same_state(a: Checkpoint, b: Checkpoint) -> None:
    """Weights and averages are the same, bit for bit."""
    assert_equal(a.weights(), b.weights())
    assert_equal(a.averages(), b.averages())
