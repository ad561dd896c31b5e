"""Many writers at the same shard, and two whole commands at the same cache."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.addressed import address, create_shard
from data.arrays import dump_array
from data.manifest import sha256
from data.sample import META, MOMENTS, TEXT, RawSample
from data.shard import ShardEntry
from data.storage import Prefix, open_prefix
from data.stream import open_dataset
from data.tar import index_tar, parse_index
from tests.helpers.cache_processes import start_cache, visible_files
from tests.helpers.caches import cache_settings
from tests.helpers.damage import run_verify
from tests.helpers.races import race, race_of_threads
from tests.helpers.raw_images import write_raw
from tests.helpers.tiny_bert import tiny_bert

WRITERS = 16
# With the same bits in each there is less to go wrong.
ROUNDS = {("disk", False): 100, ("s3", False): 20, ("disk", True): 20, ("s3", True): 3}
MEMBERS = (MOMENTS, TEXT, META)
SAMPLES = 5


def samples(seed: int) -> list[RawSample]:
    """What a writer would store: its bits are its seed's, as another device's would be."""
    chance = np.random.default_rng(seed)
    found = []
    for number in range(SAMPLES):
        values = chance.standard_normal((4, 2, 2)).astype(np.float16)
        text = chance.standard_normal((3, 2)).astype(np.float16)
        content = {MOMENTS: dump_array(values), TEXT: dump_array(text), META: b"{}"}
        found.append(RawSample(f"s{number}", content))
    return found


def name_of(number: int) -> str:
    return address(number, {"round": number})


def write(url: str, same: bool, number: int, writer: int) -> ShardEntry:
    """One writer's part of a round."""
    out = open_prefix(url, "out")
    seed = 0 if same else writer
    return create_shard(out, name_of(number), samples(seed), MEMBERS, 1, maker=seed)


class Watcher:
    """Looks at every file of a prefix again and again while others write; notes what changed."""

    def __init__(self, out: Prefix, pause: float) -> None:
        self.out, self.pause, self.over = out, pause, threading.Event()
        self.seen: dict[str, set[Any]] = {}
        self.thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watcher":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()
        self.look()

    def _look(self) -> None:
        while not self.over.wait(self.pause):
            self.look()

    def look(self) -> None:
        for name, version in versions(self.out).items():
            self.seen.setdefault(name, set()).add(version)


def versions(out: Prefix) -> dict[str, Any]:
    """What changes with every write of a file, by name."""
    if out.local:
        found = {}
        for file in Path(out.local).rglob("[!.]*"):
            try:
                status = file.stat()
            except FileNotFoundError:
                continue
            if file.is_file():
                name = str(file.relative_to(out.local))
                found[name] = (status.st_ino, status.st_mtime_ns, status.st_size)
        return found
    root = out.path("").rstrip("/")
    listed = out.fs.find(root, detail=True).items()
    tagged = [(name, info) for name, info in listed if info.get("ETag")]
    return {n[len(root) + 1 :]: (info["ETag"], str(info["LastModified"])) for n, info in tagged}


def check_rounds(url: str, rounds: list[list[ShardEntry]], seen: dict[str, set[Any]]) -> None:
    """One winner a round, whose files are whole, and nothing of anybody else."""
    out = open_prefix(url, "out")
    wanted = set()
    for number, entries in enumerate(rounds):
        first = entries[0]
        assert len(entries) == WRITERS
        assert all(entry == first for entry in entries)
        shard, entry = first.shard, f"index/{name_of(number)}.json"
        content = out.read(shard.tar)
        assert (sha256(content), len(content)) == (shard.sha256, shard.bytes)
        index = out.read(shard.index)
        assert sha256(index) == shard.index_sha256
        rows = parse_index(index, len(MEMBERS), (SAMPLES,))
        np.testing.assert_array_equal(rows, index_tar(content, MEMBERS, "it"))
        maker = {sample.key: dict(sample.members) for sample in samples(first.extra["maker"])}
        for row, members in zip(rows, maker.values(), strict=True):
            for column, member in enumerate(MEMBERS):
                start, length = int(row["offset"][column]), int(row["length"][column])
                assert content[start : start + length] == members[member]
        assert out.read(entry) == first.to_json()
        wanted |= {shard.tar, shard.index, entry}
    assert {*versions(out)} == wanted
    assert {name for name in wanted if len(seen[name]) != 1} == set(), "files were overwritten"


@pytest.mark.parametrize("same", [False, True], ids=["other bits", "the same bits"])
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_of_many_writers_of_a_shard_one_wins_and_all_agree(
    tmp_path: Path, request: pytest.FixtureRequest, place: str, same: bool
) -> None:
    local = place == "disk"
    url = str(tmp_path / "out") if local else request.getfixturevalue("s3_prefix")
    with Watcher(open_prefix(url, "out"), 0.02 if local else 0.2) as watcher:
        contest = race if local else race_of_threads  # connections of 16 processes take minutes
        rounds = contest(WRITERS, ROUNDS[place, same], partial(write, url, same))
    check_rounds(url, rounds, watcher.seen)
    if not same:
        winners = {entries[0].extra["maker"] for entries in rounds}
        assert len(winners) > 1, "one writer was first in every round: that is no race"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("race") / "bert")


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_two_commands_at_once_share_the_work_and_make_one_cache(
    autoencoder: Path, bert: Path, tmp_path: Path, request: pytest.FixtureRequest, place: str
) -> None:
    local = place == "disk"
    out: Path | str = tmp_path / "out" if local else request.getfixturevalue("s3_prefix")
    shards = [4 + number % 3 for number in range(40)]
    write_raw(tmp_path / "images", shards)
    settings = [
        *cache_settings(tmp_path / "images", autoencoder, out),
        f"text_encoder.path={bert}",
        "text_encoder.max_length=16",
    ]
    one, other = (
        start_cache(
            tmp_path / f"process{threads}",
            [*settings, f"micro_batch_size={at_once}"],
            threads,
            tmp_path / "meeting",
        )
        for threads, at_once in ((1, 3), (8, 8))
    )
    for process in (one, other):
        assert process.ended() == 0, process.log.read_text()
    assert run_verify(out) == 0
    latents, images = (
        open_dataset(str(out), "latents"),
        open_dataset(str(tmp_path / "images"), "images"),
    )
    keys = [
        [sample_key(data, n, row) for row in range(c)]
        for data in (latents, images)
        for n, c in enumerate(shards)
    ]
    assert keys[: len(shards)] == keys[len(shards) :]
    files = {name for shard in latents.manifest.shards for name in (shard.tar, shard.index)}
    there = {name for name in visible_files(out) if name.startswith(("shards/", "index/"))}
    assert {name for name in there if not name.endswith(".json")} == files
    assert not [name for name in visible_files(out) if name.startswith("claims")]
    both = [shards[number] for process in (one, other) for number in process.encoded]
    assert sum(shards) <= sum(both) < 2 * sum(shards)
    assert one.encoded and other.encoded


def sample_key(data: Any, shard: int, row: int) -> str:
    return data.read(shard, row).key
