"""`ldm verify`: reads a dataset end to end against its manifest and names what is broken."""

import io

import numpy as np

from conf.schema import VerifyCommand
from data.manifest import EMPTY_TEXT, Shard, sha256
from data.progress import progress, say
from data.stream import Dataset, open_dataset
from data.tar import CorruptShard, read_member


def verify(config: VerifyCommand) -> int:
    """Check every shard, index and sample of a dataset.

    Returns:
        0 if all is as the manifest says, else 1.
    """
    data = open_dataset(config.data.url, "any")
    broken = _empty_text_faults(data)
    with progress("verify", data.manifest.samples, unit="samples") as meter:
        for shard in data.manifest.shards:
            broken += _faults(data, shard)
            meter.advance(shard.samples)
    for fault in broken:
        say(f"broken: {fault}")
    count = f"{data.manifest.samples:,} samples in {len(data.manifest.shards):,} shards"
    say(f"verify: {count}, {len(broken)} broken; fingerprint {data.manifest.fingerprint}")
    return 1 if broken else 0


def _empty_text_faults(data: Dataset) -> list[str]:
    """What is wrong with the empty caption's embedding, if the dataset has one."""
    spec = data.manifest.text
    if spec is None:
        return []
    try:
        content = data.prefix.read(EMPTY_TEXT)
    except FileNotFoundError:
        return [f"{EMPTY_TEXT}: is missing"]
    if sha256(content) != spec.empty_sha256:
        return [f"{EMPTY_TEXT}: is not what the manifest pins"]
    return []


def _faults(data: Dataset, shard: Shard) -> list[str]:
    """What is wrong with a shard, by name; empty if nothing is."""
    try:
        content = data.prefix.read(shard.tar)
        index = data.prefix.read(shard.index)
    except FileNotFoundError as error:
        return [f"{shard.name}: a file is missing ({error})"]
    if sha256(index) != shard.index_sha256:
        return [f"{shard.index}: is not the index that the manifest pins"]
    if sha256(content) == shard.sha256:
        return []
    return _damaged_samples(data, shard, content) or [
        f"{shard.tar}: bytes between the samples differ"
    ]


def _damaged_samples(data: Dataset, shard: Shard, content: bytes) -> list[str]:
    """Name the samples, and the byte ranges, of a shard whose hash is wrong."""
    faults = []
    if len(content) != shard.bytes:
        faults.append(f"{shard.tar}: has {len(content):,} bytes, the manifest says {shard.bytes:,}")
    index = np.load(io.BytesIO(data.prefix.read(shard.index)), allow_pickle=False)
    for row in index:
        for column, extension in enumerate(data.manifest.members):
            where = f"{shard.tar}: {bytes(row['key']).decode()}.{extension}"
            try:
                read_member(content, 0, row, column, where)
            except CorruptShard as fault:
                faults.append(str(fault))
    return faults
