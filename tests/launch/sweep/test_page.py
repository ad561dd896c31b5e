"""The report of a sweep whose trials are made up: all outcomes, several things that vary."""

import base64
import html
import json
import math
import shlex
from pathlib import Path

import pytest
import wandb

from conf.compose import compose_config
from conf.errors import UserError
from data.claim import claim
from data.image import decode_image
from data.storage import Prefix, open_prefix
from launch.report import report
from launch.sweep.objective import TRAINING
from launch.sweep.plan import identity, read_plan, trial_overrides
from launch.sweep.record import Outcome, Trial, best_command, folder_of, ranked, write_trial
from tests.helpers.blackhole import blackhole
from training.tracking.files import METRICS

KEY = "c0ffee" * 8
HOSTILE = "<script>alert(1)</script>"


def made_up_sweep(folder: Path) -> tuple[Prefix, list[Trial]]:
    """Fourteen trials of a learning rate, a weighting and a batch size; 3e-4 is best."""
    fixed = ("validation.url=v", "train.samples=4000", f"data.url='{HOSTILE}'")
    varied = (
        "sweep.sampler=tpe",
        "optimizer.lr=tag(log,interval(1e-5,1e-3))",
        "diffusion.weighting=uniform,min_snr,p2",
        "batch_size=64,128",
    )
    out, trials = open_prefix(str(folder), "out"), []
    plan = read_plan([*fixed, *varied, f"out={folder}"])
    claim(out, identity(plan))
    for number in range(14):
        lr = 1e-5 * 100 ** (number / 13)
        weighting = ("uniform", "min_snr", "p2")[number % 3]
        values = {
            "optimizer.lr": f"{lr:.6g}",
            "diffusion.weighting": weighting,
            "batch_size": str(64 * (1 + number % 2)),
        }
        least = 0.4 + 0.1 * math.log10(lr / 3e-4) ** 2 + 0.01 * (number % 3)
        losses = [least + 0.6 * math.exp(-step / 2) for step in range(1, 11)]
        outcome = {3: Outcome.pruned, 13: Outcome.diverged, 7: Outcome.refused}.get(number)
        losses = losses[: {3: 4, 13: 2, 7: 0}.get(number)]
        overrides = trial_overrides(plan, values, f"{folder}/{folder_of(number)}", "sweep")
        loss = losses[-1] if losses else None
        failures = ["exit code 1: the loss is nan " + HOSTILE] if number == 13 else []
        ended = outcome or Outcome.complete
        trials.append(Trial(number, values, overrides, ended, loss, 10.0 + number, failures))
        write_trial(out, trials[-1])
        lines = [{"samples_seen": 400 * i, "val_loss": one} for i, one in enumerate(losses, 1)]
        content = "".join(json.dumps(line) + "\n" for line in lines)
        out.write(f"{folder_of(number)}/{METRICS}", content.encode())
    return out, trials


def test_a_report_shows_every_trial_the_best_command_and_what_mattered(tmp_path: Path) -> None:
    out, trials = made_up_sweep(tmp_path / "sweep")
    report(compose_config("report", [f"run={out.url}", "tracking.kind=off"]))
    page = out.read("report.html").decode()
    assert page.count("src=") == page.count('src="data:image/png;base64,') == 3
    assert "http" not in page and "<script" not in page
    order = ranked(trials)
    assert [one.outcome.value for one in order[-3:]] == ["pruned", "diverged", "refused"]
    assert [one.loss for one in order[:11]] == sorted(one.loss or 0 for one in order[:11])
    places = [page.index(f"<td>{folder_of(one.number)}</td>") for one in order]
    assert places == sorted(places)
    picture = decode_image(out.read("report.png"))
    # One colour of the scale for each complete trial, dark ones and bright ones.
    assert ((picture == (68, 1, 84)).all(axis=2)).any()
    command = best_command(TRAINING, order[0], f"{out.url}/best")
    assert html.escape(command) in page
    told = compose_config("train", shlex.split(command)[2:])
    assert told.data.url == HOSTILE and told.out == f"{out.url}/best"
    assert told.optimizer.lr == float(order[0].values["optimizer.lr"])
    assert (told.tracking.group, told.tracking.tags) == (None, [])


def test_a_sweep_without_results_is_no_report(tmp_path: Path) -> None:
    plan = read_plan(
        ["data.url=a", "validation.url=v", "train.samples=1", "out=x", "optimizer.lr=1e-4,3e-4"]
    )
    claim(open_prefix(str(tmp_path / "sweep"), "out"), identity(plan))
    with pytest.raises(UserError, match="no trial has ended"):
        report(compose_config("report", [f"run={tmp_path / 'sweep'}", "tracking.kind=off"]))


def test_the_report_of_a_sweep_takes_its_key_from_a_file_and_asks_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()  # which has read the environment before
    out, _ = made_up_sweep(tmp_path / "sweep")
    online = [f"run={out.url}", "tracking.kind=online", "tracking.wandb_seconds=2"]
    with pytest.raises(UserError, match="needs a W&B key"):
        report(compose_config("report", online))
    (tmp_path / "key").write_text(KEY)
    with blackhole() as hole:
        monkeypatch.setenv("WANDB_BASE_URL", hole.url)
        wandb.teardown()
        report(compose_config("report", [*online, f"tracking.key_file={tmp_path / 'key'}"]))
        wandb.teardown()
        assert base64.b64encode(f"api:{KEY}".encode()) in hole.heard
