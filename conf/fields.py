"""How a setting is written down: its type, default, bounds and meaning. Imports no torch."""

from dataclasses import field
from typing import Any


def setting(
    doc: str, default: Any = "???", low: float | None = None, high: float | None = None
) -> Any:
    """A field with its meaning, for `--help`, and the bounds of a number or of each in a list.

    `???` is OmegaConf's mark for a value that the user must give.
    """
    metadata = {"doc": doc, "low": low, "high": high}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def group(config: type, doc: str) -> Any:
    """A nested group of settings, with its defaults."""
    return field(default_factory=config, metadata={"doc": doc})


def group_or_none(doc: str) -> Any:
    """A nested group of settings that is absent until a choice is given."""
    return field(default=None, metadata={"doc": doc})
