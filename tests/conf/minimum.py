"""The least that a user must give to a command."""

from functools import cache

from conf.compose import settings_help


def minimum(command: str, *overrides: str) -> list[str]:
    """`overrides`, and for every setting that is still required '1', which does for any type."""
    return [*overrides, *(f"{name}='1'" for name in _required(command, *overrides))]


@cache
def _required(command: str, *overrides: str) -> list[str]:
    rows = settings_help(command, list(overrides))
    return [name for name, value, _ in rows if value == "required"]
