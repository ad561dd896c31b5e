import subprocess
import sys
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.compose import (
    compose_config,
    config_dict,
    config_yaml,
    group_choices,
    parse_yaml,
    settings_help,
)
from conf.enums import EngineKind
from conf.errors import UserError
from conf.schema import CHOICES, COMMANDS, ReportCommand, SampleCommand
from tests.conf.minimum import minimum

TRAIN = ("data.url=a", "out=b", "train.samples=10")
GROUPS = {
    "engine": ("train", "autoencoder"),
    "source": ("shard",),
    "text_encoder": ("cache",),
    "autoencoder": ("autoencoder", "cache"),
}


@cache
def _composed(command):
    return compose_config(command, minimum(command))


@cache
def _meanings(command):
    return {name: doc for name, _, doc in settings_help(command, [])}


def _refused(command, *overrides):
    """The error, which is one line and begins with a setting."""
    with pytest.raises(UserError) as caught:
        compose_config(command, list(overrides))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(caught.value.setting)
    assert caught.value.wrong and caught.value.remedy
    return caught.value


def _leaves(content, prefix=""):
    """Settings by their dotted names."""
    if not isinstance(content, dict):
        return {prefix[:-1]: content}
    return {
        k: v for name, part in content.items() for k, v in _leaves(part, f"{prefix}{name}.").items()
    }


# --- what composes


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_needs_only_what_help_calls_required(command):
    assert type(_composed(command)) is COMMANDS[command]


@pytest.mark.parametrize("name", group_choices("experiment"))
def test_an_experiment_composes_for_its_command(name):
    command = "autoencoder" if name.endswith("_autoencoder") else "train"
    overrides = minimum(command, f"experiment={name}")
    assert sorted(overrides) == ["data.url='1'", f"experiment={name}", "out='1'"]
    assert compose_config(command, overrides).train.samples > 1


@pytest.mark.parametrize(
    ("command", "override"),
    [
        (command, f"{group}={choice}")
        for group, commands in GROUPS.items()
        for command in commands
        for choice in group_choices(group)
        # `ldm autoencoder` trains the ones that others use.
        if group != "autoencoder" or (command == "autoencoder") == choice.startswith("kl_")
    ],
)
def test_a_choice_composes(command, override):
    assert isinstance(compose_config(command, minimum(command, override)), COMMANDS[command])


def test_overrides_win_over_experiments_and_experiments_over_defaults():
    given = ["data.url=a", "out=b", "experiment=emoji_tiny"]
    assert compose_config("train", given).engine.kind is EngineKind.zero2
    config = compose_config("train", [*given, "engine=zero1", "batch_size=64"])
    assert (config.engine.kind, config.batch_size) == (EngineKind.zero1, 64)
    assert config.unet.channel_mult == [1, 2]


def test_a_composition_leaves_nothing_behind_for_the_next():
    before = compose_config("train", list(TRAIN))
    compose_config("train", [*TRAIN, "experiment=emoji_tiny", "optimizer.betas=[0.5,0.6]"])
    _refused("train", *TRAIN, "batch_size=x")
    assert compose_config("train", list(TRAIN)) == before


@pytest.mark.parametrize(
    ("command", "override"),
    [("shard", "source.kind=folder"), ("autoencoder", "autoencoder.kind=trained")],
)
def test_the_kind_of_a_choice_is_no_setting(command, override):
    assert _refused(command, *minimum(command), override).setting == override
    shown = {name for name, _, _ in settings_help(command, [])}
    assert override.partition("=")[0] not in shown


def test_a_setting_may_refer_to_another():
    assert compose_config("train", [*TRAIN[:2], "train.samples=${batch_size}"]).train.samples == 256


# --- what is refused


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("colour=red", "--help"),
        ("+colour=red", "--help"),
        ("data.ulr=a", "did you mean data.url?"),
        ("+data.colour=red", "did you mean data.url?"),
        ("++data.url=a", "did you mean data.url?"),
        ("~data.url", "did you mean data.url?"),
        ("unet=big", "--help"),
        ("source=openmoji", "--help"),
        ("hydra.run.dir=x", "--help"),
        ("schema/command=shard", "--help"),
        ("engine@unet=ddp", "did you mean engine.kind?"),
        ("=x", "--help"),
        ("", "--help"),
    ],
)
def test_an_unknown_setting_is_named(override, remedy):
    error = _refused("train", *TRAIN, override)
    assert (error.setting, error.wrong) == (override, "there is no such setting")
    assert remedy in error.remedy


@pytest.mark.parametrize(
    "override",
    [
        "_target_=os.system",
        "+_target_=os.system",
        "+data._target_=os.system",
        "data={_target_:os.system}",
        "engine={_target_:os.system}",
        "engine._target_=os.system",
        "optimizer.lr={_target_:os.system}",
    ],
)
def test_nothing_can_be_asked_to_be_built(override):
    assert _refused("train", override, *TRAIN).setting == override


@pytest.mark.parametrize("item", ["{_target_:os.system}", "[1]"])
def test_a_list_holds_nothing_but_numbers(item):
    error = _refused("train", f"unet.channel_mult=[1,{item}]", *TRAIN)
    assert error.setting.startswith("unet.channel_mult=[1, ")


@pytest.mark.parametrize(
    ("command", "override"),
    [
        ("train", "engine=zero9"),
        ("train", "engine="),
        ("train", "engine"),
        ("train", "engine=zero1,zero2"),
        ("train", "experiment=none"),
        ("shard", "source=moon"),
        ("cache", "text_encoder=none"),
    ],
)
def test_an_unknown_choice_is_answered_with_the_choices(command, override):
    error = _refused(command, *minimum(command), override)
    assert (error.setting, error.wrong) == (override, "there is no such choice")
    for choice in group_choices(override.partition("=")[0]):
        assert choice in error.remedy


@pytest.mark.parametrize(
    ("override", "wrong"),
    [
        ("batch_size=many", "'many'"),
        ("batch_size=1.5", "'1.5'"),
        ("batch_size=null", "not Optional"),
        ("batch_size=1,2", "Ambiguous"),
        ("optimizer.lr=fast", "'fast'"),
        ("unet.pooled_text=maybe", "'maybe'"),
        ("unet.channel_mult=3", "int"),
        ("unet.channel_mult=[1,x]", "'x'"),
        ("engine.precision=fp8", "fp32, bf16"),
        ("engine.kind=zero9", "single, ddp"),
        ("out=[a]", ""),
        ("out=${nothing}", "nothing"),
        ("out=${oc.env:UNSET_NAME}", "UNSET_NAME"),
    ],
)
def test_a_wrong_value_is_named_with_what_the_setting_means(override, wrong):
    name = override.partition("=")[0]
    error = _refused("train", override, *(one for one in TRAIN if one.partition("=")[0] != name))
    assert error.setting == override
    assert wrong in error.wrong
    assert error.remedy == f"{name} is: {_meanings('train')[name]}"


@pytest.mark.parametrize("override", ["batch_size", "batch_size=[1", "tracking.project=a=b"])
def test_bad_syntax_is_answered_with_good_syntax(override):
    error = _refused("train", override, *TRAIN)
    assert error.setting == override
    assert f"write {override.partition('=')[0]}=VALUE" in error.remedy


def test_what_is_wrong_only_beside_another_choice_is_named():
    error = _refused("autoencoder", *TRAIN, "autoencoder=kl_emoji", "autoencoder.url=c")
    assert error.setting == "autoencoder.url=c"


@pytest.mark.parametrize(
    ("command", "name"), [("train", "emoji_autoencoder"), ("shard", "emoji_tiny")]
)
def test_an_experiment_of_another_command_is_named(command, name):
    error = _refused(command, *minimum(command), f"experiment={name}")
    assert error.setting == f"experiment={name}"
    assert f"ldm {command} --help" in error.remedy


def test_of_two_mistakes_both_are_named():
    error = _refused("train", *TRAIN, "batch_size=x", "optimizer.lr=y")
    assert "batch_size=x" in error.setting and "optimizer.lr=y" in error.setting


@pytest.mark.parametrize("command", COMMANDS)
def test_each_missing_setting_is_named_with_its_meaning(command):
    needed = minimum(command)
    for override in needed:
        name = override.partition("=")[0]
        error = _refused(command, *(one for one in needed if one != override))
        assert (error.setting, error.remedy) == (name, f"give {name}=...")
        assert _meanings(command)[name] in error.wrong


def test_rules_are_run():
    assert _refused("train", *TRAIN, "batch_size=0").setting == "batch_size=0"


# --- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_setting_with_its_value_and_a_meaning(command):
    rows = settings_help(command, minimum(command))
    values = _leaves(config_dict(_composed(command)))
    for group in CHOICES:  # it follows from the choice
        values.pop(f"{group}.kind", None)
    assert {name: value for name, value, _ in rows} == {k: str(v) for k, v in values.items()}
    assert len(rows) == len(values)
    assert [name for name, _, doc in rows if not doc.strip()] == []


def test_help_follows_the_overrides():
    assert ("batch_size", "7") in [row[:2] for row in settings_help("train", ["batch_size=7"])]
    names = {row[0] for row in settings_help("autoencoder", ["autoencoder=trained"])}
    assert "autoencoder.url" in names and "autoencoder.latent_channels" not in names


def test_help_refuses_what_composition_refuses():
    with pytest.raises(UserError, match="batch_size=x"):
        settings_help("train", ["batch_size=x"])


# --- YAML


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_kept_reads_back_the_same(command):
    config = _composed(command)
    assert parse_yaml(config_yaml(config)) == config_dict(config)


def test_a_kept_configuration_is_resolved_and_names_its_enums():
    config = compose_config("train", [*TRAIN, "experiment=emoji_tiny", "tracking.project=${out}"])
    kept = parse_yaml(config_yaml(config))
    assert kept["engine"]["kind"] == "zero2"
    assert kept["tracking"]["project"] == "b"


# Without control characters and the like, which YAML itself may change.
PLAIN = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"], exclude_characters="$"))


@settings(max_examples=40)
@given(text=PLAIN, texts=st.lists(PLAIN))
def test_any_text_survives(text, texts):
    assert parse_yaml(config_yaml(ReportCommand(run=text)))["run"] == text
    config = SampleCommand(checkpoint="a", out="b", prompts=texts)
    assert parse_yaml(config_yaml(config))["prompts"] == texts


# --- imports


def test_no_torch_is_imported():
    code = "import sys, conf.compose; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
