"""Who a prefix belongs to: one file says what is being made there, and anything else is refused."""

import json
from typing import Any

from conf.errors import UserError
from data.manifest import canonical_json, parse_record
from data.storage import Prefix

SETTINGS = "settings.json"


def claim(out: Prefix, settings: dict[str, Any], shared: bool = False) -> bool:
    """Take a prefix for the work that `settings` describe; processes may race for it.

    Args:
        out: Where the work's results go.
        settings: All that decides the results, JSON-ready.
        shared: Whether files of others may lie there, beside which the work is put.

    Returns:
        True if it was free, False if it was claimed for the same work before.

    Raises:
        UserError: It is claimed for other work; names the first difference.
    """
    wanted = canonical_json(settings)
    if not shared:
        require_free(out)
    try:
        out.create(SETTINGS, wanted)
    except FileExistsError:
        there = out.read(SETTINGS)
        if there == wanted:
            return False
        name, old, new = first_difference(_settings(there, out), json.loads(wanted))
        raise UserError(
            f"out={out.url}",
            f"holds other work: there {name} is {str(old)[:80]}, asked for was {str(new)[:80]}",
            "choose another out, or the settings of what is there",
        ) from None
    return True


def require_free(out: Prefix) -> None:
    """Refuse a place that holds files and was not claimed; hidden ones do not count.

    Raises:
        UserError: It holds some.
    """
    found = [name for name in out.names() if not name.startswith(".")]
    if found and SETTINGS not in found:
        raise UserError(
            f"out={out.url}", f"is not empty (it holds {found[0]})", "choose a new or empty place"
        )


def claimed(out: Prefix) -> dict[str, Any] | None:
    """The settings that a prefix was claimed with, or None."""
    try:
        return _settings(out.read(SETTINGS), out)
    except FileNotFoundError:
        return None


def _settings(content: bytes, out: Prefix) -> dict[str, Any]:
    return parse_record(content, f"{out.url}/{SETTINGS}", "choose another out")


def release(out: Prefix) -> None:
    """Give up a claim on a place where nothing is left of the work."""
    out.remove(SETTINGS)


def first_difference(there: Any, wanted: Any, name: str = "") -> tuple[str, Any, Any]:
    """The first setting, by dotted name, in which two differ, with both values."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        for key in sorted({*there, *wanted}):
            if there.get(key) != wanted.get(key):
                return first_difference(
                    there.get(key), wanted.get(key), f"{name}.{key}".lstrip(".")
                )
    return name, there, wanted
