from pathlib import Path

import pytest

from conf.compose import compose_config
from conf.enums import DemoRecipe
from conf.errors import UserError
from conf.schema import DemoCommand
from launch.demo import PROMPTS, run_demo, stages


@pytest.mark.parametrize("recipe", DemoRecipe)
def test_every_stage_is_a_command_that_can_be_typed(recipe: DemoRecipe) -> None:
    commands = []
    for stage in stages(DemoCommand(out="some/where", recipe=recipe)):
        command, *overrides = stage.arguments
        config = compose_config(command, overrides)
        assert "some/where" in str(config)
        commands.append(command)
    expected = ["shard", "shard", "autoencoder", "cache", "train", "sample", "evaluate", "report"]
    assert commands == expected


def test_prompts_arrive_as_they_are() -> None:
    arguments = next(s.arguments for s in stages(DemoCommand()) if s.arguments[0] == "sample")
    assert tuple(compose_config(arguments[0], list(arguments[1:])).prompts) == PROMPTS
    assert len(PROMPTS) == 8


def test_what_a_later_stage_would_refuse_is_said_before_the_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size=32: cannot be divided by 3 ranks"):
        run_demo(DemoCommand(out=str(tmp_path / "out"), processes=3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["a b", "x=y", "[list]", "{dict}", "it's"])
def test_folders_that_settings_would_misread_are_refused(out: str) -> None:
    with pytest.raises(UserError, match="out="):
        run_demo(DemoCommand(out=out))
