"""Whether what the manifest says of all latents follows from its shards, and what from these."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from conf.enums import LatentScale
from conf.errors import RunError, UserError
from data.arrays import load_array
from data.shard import ShardEntry, finished_shard, finished_shards
from data.stream import Dataset
from data.tar import CorruptShard
from training.audit.material import Material
from training.cache.assemble import StoredView
from training.cache.statistics import SUMS, merged, shard_statistics
from training.meaning import scaling

CLOSE = 1e-9  # other builds of NumPy may add in another order
ANY_SIZE = 2**62  # a remote shard is read whole, not by a request a sample


def manifest_faults(material: Material) -> Iterator[str]:
    """Where statistics and scale of the manifest are not what its shards' records make them."""
    yield from _scale_faults(material)
    shards, spec = material.latents.manifest.shards, material.latent_spec
    names = [_address(shard.name) for shard in shards]
    try:
        entries = finished_shards(material.latents.prefix, names)
        if len(entries) < len(names):
            missing = len(names) - len(entries)
            yield f"{missing} shards have no record of their statistics in index/"
            return
        for name, shard in zip(names, shards, strict=True):
            if entries[name].shard != shard:
                yield f"index/{name}.json is not of the shard that the manifest names"
        now = merged([entries[name].extra["statistics"] for name in names])
    except (UserError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        yield f"the shards' records of their statistics cannot be used ({error})"
        return
    for name, value in now.items():
        if not _close(getattr(spec, name), value):
            yield f"{name} of the manifest is not that of its shards"


def shard_faults(latents: Dataset, number: int) -> Iterator[str]:
    """Whether the record of a shard holds the sums of the latents that are stored in it.

    What the number format changed cannot be told from what is stored, so that is not compared.
    """
    shard = latents.manifest.shards[number]
    try:
        now = _sums(latents, number)
        entry = finished_shard(latents.prefix, _address(shard.name))
        same = entry is not None and _same_sums(entry, now)
    except (CorruptShard, UserError, KeyError, TypeError, ValueError) as error:
        yield f"{shard.tar}: its statistics cannot be compared ({error})"
        return
    if entry is not None and not same:  # one that is missing is missed by `manifest_faults`
        yield f"{shard.tar}: its latents do not have the statistics that its record says"


def _scale_faults(material: Material) -> Iterator[str]:
    """Where shift and scale do not follow from what they are said to come from."""
    spec, autoencoder = material.latent_spec, material.autoencoder
    if spec.scaling != material.encoding.scale.value:
        yield f"scale is {spec.scaling} in the manifest, was asked for {material.encoding.scale}"
    try:
        kind = LatentScale(spec.scaling)
        if kind is LatentScale.published and autoencoder.scale is None:
            yield "scale is published in the manifest, and its autoencoder publishes none"
            return
        shift, scale = scaling(kind, autoencoder, {"mean": spec.mean, "std": spec.std})
    except (RunError, ValueError) as error:
        yield f"scale of the manifest cannot be compared ({error})"
        return
    source = "the mean and 1 / std" if kind is LatentScale.measured else "the autoencoder's own"
    for name, then, now in (("shift", spec.shift, shift), ("scale", spec.scale, scale)):
        if not _close(then, now):
            yield f"{name} of the manifest is not {kind.value}: shift and scale are to be {source}"


def _sums(latents: Dataset, number: int) -> dict[str, Any]:
    """The sums over what is stored in a shard, which is let go afterwards."""
    manifest = latents.manifest
    assert manifest.latents is not None
    data = Dataset(latents.prefix, manifest, open_shards=1, memory=ANY_SIZE)

    def views() -> Iterator[StoredView]:
        assert manifest.latents is not None
        for row in range(manifest.shards[number].samples):
            stored = data.read(number, row)
            for name in manifest.latents.members:
                yield StoredView(load_array(stored.members[name]), 0.0, 0.0)

    with np.errstate(all="ignore"):  # numbers that are not finite make sums that compare with none
        return shard_statistics(views(), manifest.latents.channels)


def _same_sums(entry: ShardEntry, now: dict[str, Any]) -> bool:
    then = entry.extra["statistics"]
    if then["count"] != now["count"]:
        return False
    # Means of both signs cancel in their sum, but never grow beyond this.
    most = np.sqrt(np.array(now["squares"]) * now["count"]).max(initial=0)
    room = {"total": CLOSE * float(most)} if math.isfinite(most) else {}
    return all(_close(then[name], now[name], room.get(name, 0.0)) for name in SUMS)


def _close(then: Any, now: Any, room: float = 0.0) -> bool:
    one, two = np.asarray(then, np.float64), np.asarray(now, np.float64)
    return one.shape == two.shape and np.allclose(one, two, rtol=CLOSE, atol=room)


def _address(name: str) -> str:
    """The name of a shard's record: that of the shard without what its content adds."""
    return name.rpartition("-")[0]
