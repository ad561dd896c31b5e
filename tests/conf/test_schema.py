import enum
from dataclasses import fields, is_dataclass
from importlib import resources

import pytest
import yaml

from conf import clusters, enums, groups, schema
from conf.compose import config_dict, file_name
from conf.enums import EngineKind
from conf.fields import setting
from conf.groups import DataConfig
from conf.schema import CHOICES, COMMANDS, TrainCommand
from conf.training import EngineConfig

CLASSES = {
    thing
    for module in (clusters, enums, groups, schema)
    for thing in vars(module).values()
    if isinstance(thing, type)
}
CONFIGS = sorted((c for c in CLASSES if is_dataclass(c)), key=lambda c: c.__name__)
ENUMS = sorted(
    (c for c in CLASSES if issubclass(c, enum.Enum) and c is not enum.Enum),
    key=lambda c: c.__name__,
)
YAML_FILES = sorted(
    str(file.relative_to(resources.files("conf")))
    for file in resources.files("conf").rglob("*.yaml")
)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_setting_and_every_group_has_a_meaning(config):
    assert [item.name for item in fields(config) if not item.metadata.get("doc")] == []
    assert config.__doc__ and not config.__doc__.startswith(f"{config.__name__}(")


@pytest.mark.parametrize("kind", ENUMS)
def test_what_help_shows_of_an_enum_is_what_the_command_line_takes(kind):
    assert [member.value for member in kind] == [member.name for member in kind]


def test_a_default_list_belongs_to_one_config_alone():
    assert setting("", [1]).default_factory() is not setting("", [1]).default_factory()
    required = {"out": "a", "data": DataConfig(url="b"), "train": None}
    first, second = TrainCommand(**required), TrainCommand(**required)
    first.unet.channel_mult.append(9)
    assert 9 not in second.unet.channel_mult


def test_every_command_has_a_file():
    files = {f"{file_name(command)}.yaml" for command in COMMANDS}
    assert files == {file for file in YAML_FILES if "/" not in file}


@pytest.mark.parametrize(
    ("group", "kind"), [(group, kind) for group in CHOICES for kind in CHOICES[group]]
)
def test_a_choice_is_of_the_kind_that_it_is_listed_as(group, kind):
    choice = CHOICES[group][kind]
    default = next(item.default for item in fields(choice) if item.name == "kind")
    assert default == kind
    groups = [item.type for c in COMMANDS.values() for item in fields(c)]
    assert any(base in groups for base in choice.__mro__[1:])


@pytest.mark.parametrize("file", YAML_FILES)
def test_a_file_names_nothing_that_could_be_built_or_run(file):
    text = (resources.files("conf") / file).read_text()
    assert "_target_" not in text
    assert "${" not in text
    yaml.safe_load(text)


def test_enums_are_plain_words_in_a_dictionary():
    assert config_dict(EngineConfig(kind=EngineKind.zero1))["kind"] == "zero1"
