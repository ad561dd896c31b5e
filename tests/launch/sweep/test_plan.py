import pytest

from conf.compose import compose_config
from conf.errors import UserError
from launch.sweep.objective import EVALUATING
from launch.sweep.plan import identity, read_plan, trial_overrides

BASE = ("data.url=a", "validation.url=v", "out=/sweeps/x", "train.samples=100")


def test_a_grid_is_every_combination_and_each_composes() -> None:
    told = ["optimizer.lr=1e-4,3e-4", "diffusion.weighting=uniform,min_snr"]
    plan = read_plan([*BASE, *told])
    assert plan.trials == 4
    seen = set()
    for values in plan.grid:
        overrides = trial_overrides(plan, values, "/sweeps/x/000", "it's")
        config = compose_config("train", overrides)
        seen.add((config.optimizer.lr, config.diffusion.weighting.value))
        assert (config.out, config.tracking.group) == ("/sweeps/x/000", "it's")
        assert config.tracking.tags == [f"{name}={value}" for name, value in values.items()]
    assert seen == {(lr, w) for lr in (1e-4, 3e-4) for w in ("uniform", "min_snr")}


def test_the_command_line_wins_over_the_space_of_a_choice() -> None:
    plan = read_plan([*BASE, "sweep=lr_batch", "batch_size=32"])
    assert [dim.name for dim in plan.dimensions] == ["optimizer.lr"]
    plan = read_plan([*BASE, "sweep=lr_batch", "batch_size=32,64"])
    assert {dim.name for dim in plan.dimensions} == {"optimizer.lr", "batch_size"}
    assert plan.trials == 24


def test_what_may_change_while_a_sweep_goes_on_is_no_part_of_it() -> None:
    told = [*BASE, "optimizer.lr=1e-4,3e-4"]
    free = ["sweep.parallel=2", "tracking.kind=off", "sweep.storage=sqlite:///b", "sweep.retries=3"]
    this = identity(read_plan(told))
    assert this == identity(read_plan([*told, *free]))
    assert this != identity(read_plan([*told, "validation.seed=1"]))
    assert this != identity(read_plan([*BASE, "optimizer.lr=1e-4,4e-4"]))


@pytest.mark.parametrize(
    ("told", "setting"),
    [
        ([], "-m"),
        (["optimizer.lr=1e-4,x"], "optimizer.lr=x"),
        (["optimizer.lr=interval(1e-4,1e-3)"], "optimizer.lr=interval"),
        (["foo=1,2"], "foo=1"),
        (["out=1,2"], "out"),
        (["sweep.seed=1,2"], "sweep.seed"),
        (["sweep.space=['batch_size=3']", "optimizer.lr=1,2"], "sweep.space"),
        (["sweep.sampler=cmaes", "optimizer.lr=interval(1e-5,1e-4)"], "sweep.sampler=cmaes"),
        (["sweep.sampler=cmaes", "batch_size=8,16"], "sweep.sampler=cmaes"),
        (["sweep.sampler=tpe", "batch_size=interval(8,16)"], "batch_size=8.0"),
        (["optimizer.lr=1,2", "validation.url=null"], "validation.url"),
        (["diffusion.schedule=linear,cosine"], "diffusion.schedule=cosine"),
        (["validation.seed=0,1"], "validation.seed=1"),
        (["optimizer.lr=-1,2"], "optimizer.lr=-1"),
    ],
)
def test_what_is_no_sweep_is_refused_by_name(told: list[str], setting: str) -> None:
    with pytest.raises(UserError) as caught:
        read_plan([*BASE, *told])
    assert caught.value.setting.startswith(setting)
    assert "\n" not in str(caught.value)


EVALUATE = ("checkpoint=r", "data.url=a", "images_per_caption=2", "out=/sweeps/y")


def test_a_sweep_of_evaluations_varies_how_images_are_made() -> None:
    plan = read_plan([*EVALUATE, "sweep=guidance"], EVALUATING)
    assert plan.trials == 8
    overrides = trial_overrides(plan, plan.grid[3], "/sweeps/y/003", "group")
    config = compose_config("evaluate", overrides)
    assert (config.out, config.sampler.guidance_scale) == ("/sweeps/y/003", 3)
    assert config.images_per_caption == 2
    told = [*EVALUATE, "sampler.guidance_scale=1,2"]
    this = identity(read_plan(told, EVALUATING))
    assert this == identity(read_plan([*told, "sweep.parallel=2", "sweep.retries=3"], EVALUATING))
    for other in ("sampler.steps=9", "seed=1", "sweep.seed=1", "checkpoint=q"):
        assert this != identity(read_plan([*told, other], EVALUATING))


@pytest.mark.parametrize(
    ("told", "setting"),
    [
        (["checkpoint=r,s"], "checkpoint=s"),
        (["samples=5,6"], "samples=6"),
        (["images_per_caption=2,3"], "images_per_caption=3"),
        (["ema_length=0.1,0.2", "images_per_caption=1"], "images_per_caption=1"),
        (["ema_length=0.1,0.2", "images_per_caption=0"], "images_per_caption=0"),
        (["sampler.steps=5,6", "images_per_caption=0"], "sampler.steps"),
        (["sampler.guidance_scale=-1,2"], "sampler.guidance_scale=-1"),
        (["sampler.steps=5,6", "sweep.pruner=median"], "sweep.pruner=median"),
        (["sweep=weighting"], "diffusion.weighting=uniform"),
        (["sweep=lr_batch"], "sweep=lr_batch"),
    ],
)
def test_what_is_no_sweep_of_evaluations_is_refused_by_name(told: list[str], setting: str) -> None:
    with pytest.raises(UserError) as caught:
        read_plan([*EVALUATE, *told], EVALUATING)
    assert caught.value.setting.startswith(setting)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("choice", ["lr_batch", "weighting"])
def test_the_spaces_that_come_along_can_be_swept(choice: str) -> None:
    assert read_plan([*BASE, f"sweep={choice}"]).trials >= 16


def test_trials_at_a_time_do_not_meet_at_one_port() -> None:
    told = ("cluster.processes=2", "cluster.port=29500", "engine=ddp", "optimizer.lr=1e-4,3e-4")
    read_plan([*BASE, *told])
    with pytest.raises(UserError, match=r"cluster\.port=29500"):
        read_plan([*BASE, *told, "sweep.parallel=2"])
