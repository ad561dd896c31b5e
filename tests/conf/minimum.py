"""The least that a user must give to a command."""

from conf.compose import settings_help


def minimum(command: str, *overrides: str) -> list[str]:
    """`overrides`, and `1` for every setting that is still required; it does for any type."""
    rows = settings_help(command, list(overrides))
    return [*overrides, *(f"{name}=1" for name, value, _ in rows if value == "required")]
