"""Any number of processes that never talk make the cache that one would make."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import pytest

from data.manifest import Manifest
from tests.helpers.cache_processes import (
    CacheProcess,
    finished_numbers,
    start_cache,
    visible_files,
)
from tests.helpers.caches import cache_settings
from tests.helpers.commands import ldm
from tests.helpers.damage import manifest_of
from tests.helpers.raw_images import write_raw
from tests.helpers.tiny_bert import tiny_bert

SHARDS = [3, 5, 4, 6, 2, 7, 5, 3, 4]
LAUNCHERS = [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")]


@dataclass(frozen=True)
class Setup:
    """What is cached, and how."""

    folder: Path
    settings: Callable[[Path | str], list[str]]
    wanted: dict[str, bytes]


@pytest.fixture(scope="module")
def setup(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """Shards of many sizes, and their cache by one process."""
    folder = tmp_path_factory.mktemp("ranks")
    write_raw(folder / "images", SHARDS)
    bert = tiny_bert(folder / "bert")

    def settings(out: Path | str) -> list[str]:
        more = (f"text_encoder.path={bert}", "text_encoder.max_length=16", "micro_batch_size=4")
        return [*cache_settings(folder / "images", autoencoder, out), *more]

    alone = start_cache(folder / "process", settings(folder / "alone"))
    assert alone.ended() == 0, alone.log.read_text()
    return Setup(folder, settings, visible_files(folder / "alone"))


@pytest.fixture
def start(setup: Setup, tmp_path: Path) -> Iterator[Callable[..., CacheProcess]]:
    """Starts a rank of a cache in the test's own `out`."""
    started: list[CacheProcess] = []

    def begin(*more: str, **environment: str) -> CacheProcess:
        folder = tmp_path / f"process{len(started)}"
        settings = [*setup.settings(tmp_path / "out"), *more]
        started.append(start_cache(folder, settings, **environment))
        return started[-1]

    yield begin
    for process in started:
        process.kill()


def run(process: CacheProcess) -> str:
    """Waits for a rank that has to succeed; gives what it said."""
    assert process.ended() == 0, process.log.read_text()
    return process.log.read_text()


@pytest.mark.parametrize("order", [*permutations(range(3))][1::2])
def test_ranks_one_after_the_other_in_any_order_make_what_one_process_makes(
    setup: Setup, start: Callable[..., CacheProcess], tmp_path: Path, order: tuple[int, ...]
) -> None:
    own = []
    for rank in order:
        assert not (tmp_path / "out/manifest.json").exists()
        process = start(f"rank={rank}", "world_size=3")
        said = run(process)
        own += process.encoded
        assert ("are missing" in said) == (rank != order[-1])
    assert sorted(own) == [*range(len(SHARDS))]
    assert visible_files(tmp_path / "out") == setup.wanted


def test_ranks_at_once_make_what_one_process_makes(
    setup: Setup, start: Callable[..., CacheProcess], tmp_path: Path
) -> None:
    together = [start(f"rank={rank}", "world_size=3") for rank in range(3)]
    for process in together:
        run(process)
    assert visible_files(tmp_path / "out") == setup.wanted
    assert sorted(n for process in together for n in process.encoded) == [*range(len(SHARDS))]


def test_a_rank_that_was_killed_is_run_again(
    setup: Setup, start: Callable[..., CacheProcess], tmp_path: Path
) -> None:
    together = [start(f"rank={rank}", "world_size=3") for rank in range(3)]
    wait_until_it_encodes(together[1])
    together[1].kill()
    run(together[0])
    run(together[2])
    if not (tmp_path / "out/manifest.json").exists():  # it was killed before its last shard
        finished = finished_numbers(tmp_path / "out")
        again = start("rank=1", "world_size=3")
        run(again)
        assert not finished & {*again.encoded}
    assert visible_files(tmp_path / "out") == setup.wanted


def wait_until_it_encodes(process: CacheProcess) -> None:
    """Waits until a rank has begun to encode."""
    while process.process.is_alive() and not process.encoded:
        process.process.join(0.002)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 10])
def test_statistics_do_not_depend_on_the_number_of_ranks(
    setup: Setup, start: Callable[..., CacheProcess], tmp_path: Path, ranks: int
) -> None:
    """Ten are more than there are shards."""
    order = random.Random(ranks).sample(range(ranks), ranks)
    together = [start(f"rank={rank}", f"world_size={ranks}") for rank in order]
    for process in together:
        run(process)
    got, wanted = manifest_of(tmp_path / "out"), manifest_of(setup.folder / "alone")
    assert statistics(got) == statistics(wanted)
    assert visible_files(tmp_path / "out") == setup.wanted


def statistics(manifest: Manifest) -> dict[str, object]:
    spec = manifest.latents
    names = ("mean", "std", "shift", "scale", "posterior_std", "rms_error", "max_error")
    found = {name: getattr(spec, name) for name in names}
    assert all(found.values())
    return found


@pytest.mark.parametrize(("rank", "world_size"), LAUNCHERS)
def test_a_launcher_says_in_the_environment_who_a_process_is(
    setup: Setup,
    start: Callable[..., CacheProcess],
    tmp_path: Path,
    rank: str,
    world_size: str,
) -> None:
    halves = []
    for number in range(2):
        process = start(**{rank: str(number), world_size: "2"})
        run(process)
        halves.append(process.encoded)
    half = len(SHARDS) // 2
    assert [sorted(own) for own in halves] == [[*range(half)], [*range(half, len(SHARDS))]]
    assert visible_files(tmp_path / "out") == setup.wanted


def test_a_rank_that_is_none_is_refused(start: Callable[..., CacheProcess], tmp_path: Path) -> None:
    refused = start(RANK="2", WORLD_SIZE="2")
    assert refused.ended() == 2
    assert "RANK=2 WORLD_SIZE=2" in refused.log.read_text()
    outside = start("rank=3", "world_size=3")
    assert outside.ended() == 2
    assert "rank" in outside.log.read_text()
    assert not (tmp_path / "out").exists()


def test_two_processes_of_the_cluster_make_what_one_makes(setup: Setup, tmp_path: Path) -> None:
    ended = ldm(tmp_path / "log", "cache", *setup.settings(tmp_path / "out"), "cluster.processes=2")
    assert ended.code == 0, ended.output
    assert visible_files(tmp_path / "out") == setup.wanted
