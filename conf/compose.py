"""From overrides to one typed configuration, or one clear line about what is wrong."""

import contextlib
import difflib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import resources
from types import NoneType, UnionType
from typing import Any, get_args

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.errors import UserError
from conf.rules import check
from conf.schema import CHOICES, COMMANDS


@cache
def _register(command: str) -> None:
    """Tell Hydra of a command's schema, and those of its groups' choices: all of them take long."""
    store, schema = ConfigStore.instance(), COMMANDS[command]
    store.store(group="schema/command", name=file_name(command), node=schema, package="_global_")
    for group in (item.name for item in fields(schema) if item.name in CHOICES):
        for name, choice in CHOICES[group].items():
            store.store(group=f"schema/{group}", name=name, node=choice)


def file_name(command: str) -> str:
    """Name of a command's YAML file, without its ending."""
    return command.replace("-m", "sweep").replace(" ", "_")


def compose_config(command: str, overrides: list[str]) -> Any:
    """Compose and check the configuration of one command.

    Args:
        command: A name in `conf.schema.COMMANDS`.
        overrides: Hydra overrides, `group=choice` or `key=value`.

    Returns:
        An instance of the command's dataclass, its cross-field rules checked.

    Raises:
        UserError: An unknown setting, a wrong type, a missing value or a combination that cannot
            work.
    """
    typed = compose_typed(command, overrides)
    check(typed)
    return typed


def compose_typed(command: str, overrides: list[str]) -> Any:
    """The same with its cross-field rules not checked.

    Raises:
        UserError: An unknown setting, a wrong type or a missing value.
    """
    config = _compose(command, overrides)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        doc = dict(_settings(COMMANDS[command], config)).get(missing[0], "")
        raise UserError(
            missing[0], f"is missing ({doc})" if doc else "is missing", f"give {missing[0]}=..."
        )
    typed = OmegaConf.to_object(config)
    _check_lists(typed)
    return typed


def config_yaml(typed: Any) -> str:
    """The resolved configuration as YAML, as it is kept with a run."""
    return OmegaConf.to_yaml(OmegaConf.structured(typed), resolve=True)


def settings_help(command: str, overrides: list[str]) -> list[tuple[str, str, str]]:
    """Every setting of a command as (name, value, meaning); missing values read `required`."""
    config = _compose(command, overrides)
    missing = OmegaConf.missing_keys(config)
    rows = []
    for name, doc in _settings(OmegaConf.get_type(config) or COMMANDS[command], config):
        value = "required" if name in missing else OmegaConf.select(config, name)
        rows.append((name, str(getattr(value, "value", value)), doc))
    return rows


def _compose(command: str, overrides: list[str]) -> DictConfig:
    _register(command)
    for override in overrides:
        _check_name(command, override)
    try:
        return _hydra_compose(command, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(command, overrides, error) from None


def _hydra_compose(command: str, overrides: list[str]) -> DictConfig:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose(file_name(command), overrides)
    OmegaConf.resolve(config)
    return config


def _check_name(command: str, override: str) -> None:
    """Refuse an unknown setting or choice by name, with the nearest known one."""
    name, _, value = override.partition("=")
    choices = group_choices(name)
    known = [setting for setting, _ in _settings(COMMANDS[command])]
    if choices and any(s == name or s.startswith(f"{name}.") for s in (*known, "experiment")):
        if value not in choices:
            raise UserError(
                override, "there is no such choice", f"choose one of {', '.join(choices)}"
            )
    elif name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        remedy = (
            f"did you mean {close[0]}?" if close else f"`ldm {command} --help` lists the settings"
        )
        raise UserError(override, "there is no such setting", remedy)


def _check_lists(config: Any, prefix: str = "") -> None:
    """Refuse lists and dictionaries among the numbers of a list, which OmegaConf lets pass."""
    for item in fields(config):
        name, value = f"{prefix}{item.name}", getattr(config, item.name)
        if is_dataclass(value):
            _check_lists(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(part, (list, dict)) for part in value):
            remedy = f"{name} is: {item.metadata['doc']}"
            raise UserError(f"{name}={value}", "has items that are not plain values", remedy)


@cache
def group_choices(group: str) -> tuple[str, ...]:
    """The choices of a config group, which are the YAML files in the folder of its name."""
    folder = resources.files("conf") / group
    if not group.isidentifier() or not folder.is_dir():
        return ()
    names = [file.name for file in folder.iterdir()]
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def _explain(command: str, overrides: list[str], error: Exception) -> UserError:
    """Name the override that Hydra or OmegaConf refused: the one without which composition
    succeeds.
    """
    meanings = dict(_settings(COMMANDS[command]))
    wrong = _first_line(error.__cause__ or error)
    told = str(error)  # which names the setting, most often: then the first to be left out is it
    for i in sorted(range(len(overrides)), key=lambda i: overrides[i].split("=")[0] not in told):
        override = overrides[i]
        with contextlib.suppress(HydraException, OmegaConfBaseException):
            _hydra_compose(command, overrides[:i] + overrides[i + 1 :])
            name = override.partition("=")[0]
            remedy = f"`ldm {command} --help` lists the choices that fit"
            if isinstance(error, OverrideParseException):
                remedy = f"write {name}=VALUE, with quotes around a VALUE that has signs in it"
            elif name in meanings:
                remedy = f"{name} is: {meanings[name]}"
            return UserError(override, wrong, remedy)
    return UserError(" ".join(overrides) or command, wrong, f"see `ldm {command} --help`")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].strip()


def _settings(
    schema: type, config: DictConfig | None = None, prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Names and meanings of all settings; a group with choices is looked up in `config`, or else
    lists them all.
    """
    for item in fields(schema):
        name = f"{prefix}{item.name}"
        nested = _without_none(item.type)
        if item.name == "kind" and prefix.rstrip(".") in CHOICES:
            continue  # it follows from the choice, as the other settings of the group do
        if isinstance(nested, type) and is_dataclass(nested):
            if config is not None and OmegaConf.select(config, name) is None:
                yield name, item.metadata.get("doc", "")
                continue
            if config is not None:
                actual = OmegaConf.get_type(OmegaConf.select(config, name))
                yield from _settings(actual or nested, config, f"{name}.")
                continue
            for choice in (nested, *CHOICES.get(item.name, {}).values()):
                yield from _settings(choice, None, f"{name}.")
        else:
            yield name, item.metadata.get("doc", "")


def _without_none(kind: Any) -> Any:
    """The type of a group that may be absent."""
    options = [option for option in get_args(kind) if option is not NoneType]
    return options[0] if isinstance(kind, UnionType) and len(options) == 1 else kind


def config_dict(typed: Any) -> dict[str, Any]:
    """The resolved configuration as plain values, enums by name."""
    content: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(typed), enum_to_str=True)  # type: ignore[assignment]
    return content


def parse_yaml(text: str) -> dict[str, Any]:
    """Read back what `config_yaml` wrote, as plain values."""
    content: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(text))  # type: ignore[assignment]
    return content
