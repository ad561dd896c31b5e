"""What W&B shows of a sweep: one group, and what was chosen as tags."""

from pathlib import Path

import wandb

from conf.compose import compose_config, config_dict
from data.storage import open_prefix
from launch.sweep.plan import read_plan, trial_overrides
from tests.helpers.wandb_file import read_records
from training.tracking.wandb_run import start_wandb


def test_what_the_user_says_of_group_and_tags_counts_too() -> None:
    told = ["tracking.group=mine", "tracking.tags=[a,'b c']", "optimizer.lr=1e-4,3e-4"]
    plan = read_plan(["data.url=a", "validation.url=v", "out=x", "train.samples=100", *told])
    config = compose_config("train", trial_overrides(plan, plan.grid[0], "x/000", "my sweep"))
    assert config.tracking.group == "mine"
    assert config.tracking.tags == ["a", "b c", "optimizer.lr=0.0001"]


def test_a_trial_is_a_run_in_the_sweeps_group_with_what_was_chosen_as_tags(tmp_path: Path) -> None:
    fixed = ["data.url=a", "validation.url=v", "out=/sweeps/x", "train.samples=100"]
    plan = read_plan([*fixed, "optimizer.lr=1e-4,3e-4", "unet.channel_mult=[1,2],[1]"])
    config = compose_config(
        "train", trial_overrides(plan, plan.grid[2], str(tmp_path / "002"), "my sweep")
    )
    run = start_wandb(open_prefix(config.out, "out"), config.tracking, config_dict(config))
    run.finish()
    wandb.teardown()  # its process writes behind, and others may have used it before
    (file,) = tmp_path.rglob("*.wandb")
    records = [one.run for one in read_records(file) if one.WhichOneof("record_type") == "run"]
    assert {one.run_group for one in records} == {"my sweep"}
    assert [*records[0].tags] == ["optimizer.lr=0.0003", "unet.channel_mult=[1,2]"]
