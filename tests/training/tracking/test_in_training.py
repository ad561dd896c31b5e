"""What a training leaves of itself: its lineage, its W&B run in every checkpoint, its alerts."""

import json
from pathlib import Path

import pytest
import torch

from conf.errors import RunError
from tests.helpers.latents import checkpoint_of, train_small, write_latents
from tests.helpers.wandb_file import read_history, read_records, read_run_ids
from training.spread import BINS, histogram
from training.tracking.code import code_state

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
    assert starts[0]["code"]["files"] == code_state().files
    assert alerts(run) == ["finished", "finished"]


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
