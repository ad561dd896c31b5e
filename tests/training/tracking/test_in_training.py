"""What a training leaves of itself: its lineage, its W&B run in every checkpoint, its alerts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.errors import RunError
from data.storage import open_prefix
from tests.helpers.commands import ldm
from tests.helpers.latents import SMALL_UNET, checkpoint_of, train_small, write_latents
from tests.helpers.wandb_file import read_history, read_records, read_run_ids
from training.spread import BINS, histogram
from training.tracking.code import CodeState, code_state
from training.tracking.lineage import keep_lineage

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
OFTEN = (
    "tracking.kind=offline",
    "tracking.log_every_samples=8",
    "tracking.histograms_every_samples=16",
    "checkpoint.every_samples=8",
)


def alerts(run: Path) -> list[str]:
    files = sorted((run / "wandb").rglob("*.wandb"), key=lambda file: file.stat().st_mtime)
    records = (record for file in files for record in read_records(file))
    return [x.alert.title for x in records if x.WhichOneof("record_type") == "alert"]


def configs(run: Path) -> list[dict[str, Any]]:
    """The settings of each start, as W&B keeps them."""
    files = sorted((run / "wandb").rglob("*.wandb"), key=lambda file: file.stat().st_mtime)
    records = [record for file in files for record in read_records(file)]
    told = [record.run.config.update for record in records if record.HasField("run")]
    return [{item.key: json.loads(item.value_json) for item in one} for one in told]


def test_a_run_tells_where_it_came_from_and_goes_on_in_its_wandb_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDM_IMAGE", "registry/ldm@sha256:12")
    manifest = write_latents(tmp_path / "latents")
    run = tmp_path / "run"
    train_small(tmp_path / "latents", run, *OFTEN, "train.samples=16")
    (run_id,) = read_run_ids(run)
    assert checkpoint_of(run).tracker == run_id
    (run / "wandb_id").unlink()  # the checkpoints alone say it
    train_small(tmp_path / "latents", run, *OFTEN, "train.samples=32")
    assert read_run_ids(run) == {run_id}
    history = sorted(read_history(run), key=lambda line: line["samples_seen"])
    assert [line["samples_seen"] for line in history] == [8, 16, 24, 32]
    assert sum("weights/" in name for name in history[1]) > 10
    assert not any("weights/" in name for name in history[0])
    for line in history:
        slowest = line["slowest_rank_images_per_second"]
        assert line["images_per_second"] < slowest == line["fastest_rank_images_per_second"]
    starts = json.loads((run / "lineage.json").read_text())
    assert [start["samples_seen"] for start in starts] == [0, 16]
    assert starts[0]["data"][0]["fingerprint"] == manifest.fingerprint
    assert starts[0]["image"] == "registry/ldm@sha256:12"
    code = code_state()
    assert starts[0]["code"]["files"] == code.files
    assert (run / "code.diff").exists() == bool(code.dirty)
    assert alerts(run) == ["finished", "finished"]
    told = configs(run)[0]
    assert told["lineage"]["data"] == starts[0]["data"]
    assert told["lineage"]["code"] == starts[0]["code"]
    assert told["train"]["samples"] == 16


def test_the_changes_of_the_code_lie_with_the_run_until_there_are_none(tmp_path: Path) -> None:
    out = open_prefix(str(tmp_path), "out")
    keep_lineage(out, {"image": None}, CodeState("12", "34", "+a change\n"), 0)
    assert out.read("code.diff") == b"+a change\n"
    keep_lineage(out, {"image": None}, CodeState("13", "35"), 8)
    assert not out.exists("code.diff")
    starts = json.loads(out.read("lineage.json"))
    assert [start["samples_seen"] for start in starts] == [0, 8]


def test_a_batch_that_is_passed_over_and_a_stall_call(tmp_path: Path) -> None:
    """A stall is anything: no step is as short as the time that is given to it."""
    write_latents(tmp_path / "latents", nan_in="0-003")
    told = ("guards.nonfinite=skip", "tracking.stall_seconds=0.01", "train.samples=40")
    train_small(tmp_path / "latents", tmp_path / "run", *OFTEN, *told)
    found = alerts(tmp_path / "run")
    assert found.count("not finite") == 1
    assert found.count("stall") >= 2  # and once more for each that it goes on
    assert found[-1] == "finished"


def test_ranks_that_differ_are_told_apart_in_the_one_wandb_run_that_they_write(
    tmp_path: Path,
) -> None:
    write_latents(tmp_path / "latents")
    run = tmp_path / "run"
    settings = [*SMALL_UNET, f"data.url={tmp_path / 'latents'}", f"out={run}", "batch_size=8"]
    settings += [*OFTEN, "train.samples=32", "engine=ddp", "cluster.processes=2"]
    ended = ldm(tmp_path / "log", "train", *settings, "engine.precision=fp32")
    assert ended.code == 0, ended.output
    assert len(read_run_ids(run)) == 1
    assert len([*run.rglob("*.wandb")]) == 1
    history = read_history(run)
    assert [line["samples_seen"] for line in history] == [8, 16, 24, 32]
    for line in history:
        slowest, fastest = (
            line[f"{name}_rank_images_per_second"] for name in ("slowest", "fastest")
        )
        assert slowest < fastest  # two clocks never agree to the last bit


def test_a_run_that_fails_calls(tmp_path: Path) -> None:
    write_latents(tmp_path / "latents", nan_in="0-003")
    with pytest.raises(RunError):
        train_small(tmp_path / "latents", tmp_path / "run", *OFTEN, "train.samples=80")
    assert alerts(tmp_path / "run") == ["failed"]


def test_a_histogram_counts_every_value_once() -> None:
    values = torch.randn(1000)
    found = histogram(values)
    assert sum(found.counts) == 1000
    assert len(found.counts) == BINS
    edges = torch.tensor(found.edges)
    assert edges[0] <= values.min()
    assert edges[-1] >= values.max()
    assert sum(histogram(torch.zeros(7)).counts) == 7
