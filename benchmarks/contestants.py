"""The loaders that are compared, and how one of them is run."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.environments import (
    HUGGINGFACE,
    LITDATA,
    MOSAICML,
    OURS,
    WEBDATASET,
    Environment,
    python_of,
)
from benchmarks.loaders.payload import SAMPLES, expected_digest
from data.manifest import EMPTY_TEXT, NAME, Shard, parse_manifest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A loader with one way of storing samples.

    Args:
        name: In tables.
        module: In `benchmarks.loaders`.
        environment: Where it runs.
        variant: What its module is told.
    """

    name: str
    module: str
    environment: Environment
    variant: str = ""

    def folder(self, folder: Path, kind: str) -> Path:
        """Where its samples are."""
        return folder / "-".join(filter(None, [self.module, self.variant, kind.replace(" ", "")]))


LATENT_FOUNDRY = Contestant("Latent Foundry", "latent_foundry", OURS)
WEBDATASETS = tuple(
    Contestant(f"webdataset, {payload}", "webdataset", WEBDATASET, payload)
    for payload in ("npy", "raw", "safetensors")
)
LITDATAS = (
    Contestant("litdata, tensors", "litdata", LITDATA, "tensors"),
    Contestant("litdata, bytes", "litdata", LITDATA),
)
MOSAIC = Contestant("mosaicml-streaming", "mosaicml", MOSAICML)
HF = (
    Contestant("HF datasets, arrays", "hf", HUGGINGFACE, "arrays"),
    Contestant("HF datasets, bytes", "hf", HUGGINGFACE),
)
ALL = (LATENT_FOUNDRY, *WEBDATASETS, *LITDATAS, MOSAIC, *HF)


def prepare(folder: Path, contestants: Sequence[Contestant], kinds: Sequence[str]) -> None:
    """Have every contestant store its samples, once, and check that it reads all of them."""
    for contestant in contestants:
        for kind in kinds:
            place = contestant.folder(folder, kind)
            done = place.with_suffix(".done")
            if done.exists():
                continue
            print(f"writing {place}", flush=True)
            subprocess.run(["rm", "-rf", place], check=True)
            _run(folder, contestant, "write", str(place), kind)
            found = read(folder, contestant, kind, "--digest")
            wanted = {"samples": SAMPLES[kind], "digest": expected_digest(kind)}
            assert found == wanted, (contestant.name, found, wanted)
            done.touch()


def read(
    folder: Path,
    contestant: Contestant,
    kind: str,
    *options: str,
    place: str = "",
    environment: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """One run of a contestant in a process of its own."""
    place = place or str(contestant.folder(folder, kind))
    return _figures(_run(folder, contestant, "read", place, kind, *options, more=environment))


def read_in_ranks(folder: Path, contestant: Contestant, kind: str, ranks: int) -> float:
    """Samples a second that several processes read at the same time, each its own part."""
    at = time.time() + 8  # when the last of them has imported what it needs
    processes = [
        subprocess.Popen(
            _command(
                folder,
                contestant,
                "read",
                str(contestant.folder(folder, kind)),
                kind,
                f"--rank={rank}",
                f"--ranks={ranks}",
                f"--at={at}",
                "--seconds=3",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=_environment(None),
            cwd=ROOT,
        )
        for rank in range(ranks)
    ]
    return sum(_figures(process.communicate()[0])["rate"] for process in processes)


def _run(
    folder: Path, contestant: Contestant, *arguments: str, more: Mapping[str, str] | None = None
) -> str:
    command = _command(folder, contestant, *arguments)
    ended = subprocess.run(
        command, capture_output=True, text=True, env=_environment(more), cwd=ROOT
    )
    if ended.returncode:
        sys.exit(f"{contestant.name} failed:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
    return ended.stdout


def _command(
    folder: Path, contestant: Contestant, action: str, place: str, kind: str, *options: str
) -> list[str]:
    python = python_of(contestant.environment, folder / "environments")
    variant = [contestant.variant] if contestant.variant else []
    module = f"benchmarks.loaders.{contestant.module}"
    return [python, "-m", module, action, place, kind, *variant, *options]


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **(more or {})}


def _figures(output: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    return found


def many_shards(folder: Path, number: int) -> Path:
    """A dataset of ours of many shards of 64 MB, which are links to a few."""
    source, target = LATENT_FOUNDRY.folder(folder, "223 KB"), folder / f"{number}-shards"
    if (target / NAME).exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    for name in ("shards", "index"):
        (target / name).mkdir(parents=True)
    manifest = parse_manifest((source / NAME).read_bytes(), "the benchmark's")
    shards: list[Shard] = []
    for i in range(number):
        of, name = manifest.shards[i % len(manifest.shards)], f"{i:05d}"
        shard = replace(of, name=name, tar=f"shards/{name}.tar")
        os.link(source / of.tar, target / shard.tar)
        os.link(source / of.index, target / shard.index)
        shards.append(shard)
    shutil.copy(source / EMPTY_TEXT, target)
    (target / NAME).write_bytes(replace(manifest, shards=tuple(shards)).to_json())
    return target
