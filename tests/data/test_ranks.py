import json
import os
from contextlib import ExitStack

import pytest

from conf.errors import UserError
from data import ingest
from data.manifest import NAME
from data.progress import SUMMARY
from data.ranks import Ranks, this_rank
from data.storage import open_prefix
from tests.helpers.commands import running_ldm, wait_for_end
from tests.helpers.datasets import run_shard, tiny_images
from tests.helpers.tars import make_tar, tar_sample, write_tars


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "RANK", "WORLD_SIZE"))]:
        monkeypatch.delenv(name)


# --- who this process is


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks(0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "3"}, Ranks(2, 3)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, Ranks(1, 4)),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, Ranks(0, 2)),
        ({"SLURM_NTASKS": "4"}, Ranks(0, 1)),
        (
            {"RANK": "1", "WORLD_SIZE": "4", "LDM_MACHINE": "2", "LDM_MACHINES": "3"},
            Ranks(9, 12),
        ),
    ],
)
def test_a_launcher_says_which_rank_this_is(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert this_rank() == expected
    assert this_rank(1, 5) == Ranks(1, 5)


@pytest.mark.parametrize(("rank", "world_size"), [("x", "2"), ("2", "2"), ("-1", "2"), ("0", "0")])
def test_an_environment_that_makes_no_sense_is_refused(monkeypatch, rank, world_size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(UserError, match=f"^RANK={rank} WORLD_SIZE={world_size}: "):
        this_rank()


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_item_is_one_ranks(world_size):
    items = list(range(20))
    parts = [Ranks(rank, world_size).own(items) for rank in range(world_size)]
    assert sorted(item for part in parts for item in part) == items


# --- what ranks make together


def _files(url):
    """All that is the same whoever made it."""
    prefix = open_prefix(str(url), "out")
    return {name: prefix.read(name) for name in prefix.files() if name != SUMMARY}


def _folder(images):
    return ("source=folder", f"source.path={images}")


def test_ranks_one_after_another_make_what_one_process_makes(images, tmp_path, capsys):
    out = tmp_path / "out"
    run_shard(tmp_path / "one", *_folder(images))
    settings = (*_folder(images), "world_size=2")
    assert run_shard(out, *settings, "rank=1") is None
    said = "rank 1 of 2 has made its shards; 2 of 3 are missing, the first is 00000"
    assert said in capsys.readouterr().out
    assert sorted(file.stem for file in (out / "shards").iterdir()) == ["00001"]
    assert run_shard(out, *settings, "rank=1") is None  # it takes over nothing of others
    assert not (out / NAME).exists()
    assert run_shard(out, *settings, "rank=0") is not None
    assert _files(out) == _files(tmp_path / "one")
    assert run_shard(out, *settings, "rank=1") is not None


def test_another_world_size_takes_up_what_is_missing(images, tmp_path):
    out = tmp_path / "out"
    run_shard(tmp_path / "one", *_folder(images))
    assert run_shard(out, *_folder(images), "rank=2", "world_size=3") is None
    assert run_shard(out, *_folder(images)) is not None
    assert _files(out) == _files(tmp_path / "one")


def test_the_last_rank_checks_the_bad_samples_of_all(images, tmp_path):
    for name in ("000", "005", "009"):  # one in every shard
        (images / f"{name}.png").write_bytes(b"")
    settings = (*_folder(images), "world_size=3", "max_bad_share=0.2")
    for rank in (0, 1):
        assert run_shard(tmp_path / "out", *settings, f"rank={rank}") is None
    with pytest.raises(UserError, match="3 of 10 samples are bad"):
        run_shard(tmp_path / "out", *settings, "rank=2")
    assert not (tmp_path / "out" / NAME).exists()


@pytest.mark.parametrize("place", ["local", "s3"])
def test_ranks_at_once_make_what_one_process_makes(tmp_path, place, request):
    """Three processes search and make shards at once, and find each other's on the way."""
    out = request.getfixturevalue("s3_prefix") if place == "s3" else str(tmp_path / "out")
    images = tmp_path / "images"
    tiny_images(images, 40, 16)
    settings = (*_folder(images), "shard_samples=4", "size=16", "format=jpeg")
    run_shard(tmp_path / "one", *settings)
    with ExitStack() as stack:
        ranks = []
        for rank in range(3):
            (tmp_path / str(rank)).mkdir()
            log = tmp_path / str(rank) / "log"
            told = (*settings, f"out={out}", f"rank={rank}", "world_size=3", "processes=1")
            ranks.append((stack.enter_context(running_ldm(log, "shard", *told)), log))
        ended = [wait_for_end(process, log) for process, log in ranks]
    assert [(end.code, end.output) for end in ended if end.code] == []
    assert _files(out) == _files(tmp_path / "one")


def test_ranks_share_the_search_of_tars(tmp_path, monkeypatch):
    write_tars(
        tmp_path / "in", **{name: make_tar(*tar_sample(i)) for i, name in enumerate("abcdef")}
    )
    settings = ("source=webdataset", f"source.path={tmp_path / 'in'}", "shard_samples=2")
    run_shard(tmp_path / "one", *settings)
    searched, search = [], ingest.search_tar

    def counted(config, task):
        searched.append(task.tar)
        search(config, task)

    monkeypatch.setattr(ingest, "search_tar", counted)
    out = tmp_path / "out"
    run_shard(out, *settings, "rank=1", "world_size=2")
    assert searched == [f"{name}.tar" for name in "bdface"]
    run_shard(out, *settings, "rank=0", "world_size=2")
    assert len(searched) == 6
    assert _files(out) == _files(tmp_path / "one")


def test_the_manifest_is_written_by_one_of_those_that_finish_at_once(images, tmp_path):
    """Each finds all shards there, and the same bytes are no quarrel."""
    out = tmp_path / "out"
    run_shard(out, *_folder(images))
    manifest = (out / NAME).read_bytes()
    (out / NAME).unlink()
    for rank in (0, 1):
        run_shard(out, *_folder(images), f"rank={rank}", "world_size=2")
    assert (out / NAME).read_bytes() == manifest
    assert len(json.loads((out / SUMMARY).read_bytes())) == 2
