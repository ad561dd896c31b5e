"""`kill -9` at any moment: what is finished is kept, and the end is that of an undisturbed run."""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.cache_processes import finished_numbers, start_cache, visible_files
from tests.helpers.caches import cache_settings, run_cache
from tests.helpers.raw_images import write_raw
from tests.helpers.tiny_bert import tiny_bert

SHARDS = 40
KILLS = 100 if os.environ.get("LDM_SLOW") else 20
KILLS_ON_S3 = 10 if os.environ.get("LDM_SLOW") else 3


@dataclass(frozen=True)
class Setup:
    """What is cached, and how."""

    folder: Path
    settings: Callable[[Path | str], list[str]]
    wanted: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def setup(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """Many small shards, and their cache by a process that nobody disturbs."""
    folder = tmp_path_factory.mktemp("killed")
    # Counts that no batch of eight meets the borders of.
    write_raw(folder / "images", [3 + number % 4 for number in range(SHARDS)])
    bert = tiny_bert(folder / "bert")

    def settings(out: Path | str) -> list[str]:
        more = (f"text_encoder.path={bert}", "text_encoder.max_length=16", "micro_batch_size=8")
        return [*cache_settings(folder / "images", autoencoder, out), *more]

    start_cache(folder / "warm", settings(folder / "warmed")).ended()
    began = time.monotonic()
    undisturbed = start_cache(folder / "process", settings(folder / "out"))
    assert undisturbed.ended() == 0, undisturbed.log.read_text()
    seconds = time.monotonic() - began
    assert sorted(undisturbed.encoded) == [*range(SHARDS)]
    return Setup(folder, settings, visible_files(folder / "out"), seconds)


def finish_with_kills(setup: Setup, out: Path | str, chance: random.Random, most: int) -> int:
    """Run until it is finished, with kills at random moments; gives their number."""
    kills, encoded = 0, 0
    while True:
        before = finished_numbers(out)
        process = start_cache(setup.folder / "process", setup.settings(out))
        process.process.join(chance.uniform(0, 1.1 * setup.seconds) if kills < most else 120)
        killed = process.process.is_alive()
        process.kill()
        assert not before & {*process.encoded}, "a finished shard was encoded again"
        encoded += len(process.encoded)
        if not killed:
            assert process.ended() == 0, process.log.read_text()
            break
        kills += 1
    assert encoded <= SHARDS + kills, "a kill cost more than one encoded shard"
    return kills


@pytest.mark.timeout(1200)
def test_killed_at_random_moments_it_ends_as_if_undisturbed(setup: Setup, tmp_path: Path) -> None:
    chance, kills, outs = random.Random(0), 0, 0
    while kills < KILLS:
        out = tmp_path / f"out{outs}"
        kills += finish_with_kills(setup, out, chance, KILLS - kills)
        outs += 1
        assert visible_files(out) == setup.wanted


@pytest.mark.timeout(600)
def test_killed_on_real_s3_it_ends_as_if_undisturbed(setup: Setup, s3_prefix: str) -> None:
    chance, kills, outs = random.Random(1), 0, 0
    while kills < KILLS_ON_S3:
        out = f"{s3_prefix}/out{outs}"
        kills += finish_with_kills(setup, out, chance, KILLS_ON_S3 - kills)
        outs += 1
        assert visible_files(out) == setup.wanted


def test_killed_between_the_manifest_and_the_sweep_it_is_swept_by_the_next_run(
    setup: Setup, autoencoder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    last = {setting.partition("=")[0]: setting for setting in setup.settings(out)}
    images = last.pop("data.url").partition("=")[2]
    run_cache(images, autoencoder, out, *last.values())
    (out / "claims").mkdir()
    (out / "claims/00000-0").write_bytes(b"somebody\n")
    loser = out / "shards/00000-0123456789abcdef-0123456789abcdef.tar"
    loser.write_bytes(b"of somebody who was not first")
    run_cache(images, autoencoder, out, *last.values())
    assert visible_files(out) == setup.wanted
