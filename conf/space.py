"""What a sweep varies, in Hydra's override grammar: a choice, a range, a glob or an interval."""

import re
from dataclasses import dataclass

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
)
from hydra.errors import HydraException

from conf.errors import UserError

PLAIN_PATH = re.compile(r"[\w.-]*/[\w./-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Choices:
    """A setting that takes one of some values.

    Args:
        name: The setting or the group.
        values: As they are written on a command line.
    """

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """A number that lies between two.

    Args:
        name: The setting.
        low: The least value.
        high: The largest.
        log: Whether ratios count, not differences.
        whole: Whether it is an integer.
    """

    name: str
    low: float
    high: float
    log: bool
    whole: bool


Dimension = Choices | Interval


def parse_space(overrides: list[str]) -> tuple[list[str], list[Dimension]]:
    """Part overrides into those that give one value and those that give several.

    Returns:
        The former as they are, and what the latter vary.

    Raises:
        UserError: One is not in the grammar, or leaves nothing to choose from.
    """
    fixed: list[str] = []
    swept: list[Dimension] = []
    with initialize_config_module("conf", version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        for text in overrides:
            parsed = _parsed(parser, text)
            if parsed.is_sweep_override():
                swept.append(_dimension(parsed, text))
            else:
                fixed.append(text)
    return fixed, swept


def override(name: str, value: str) -> str:
    """`NAME=VALUE` of a text that may hold anything; a plain path goes without quotes."""
    return f"{name}={value if PLAIN_PATH.fullmatch(value) else quoted(value)}"


def quoted(text: str) -> str:
    """A text in quotes, as Hydra's grammar has them."""
    return QuotedString(text, Quote.single).with_quotes()


def _parsed(parser: OverridesParser, text: str) -> Override:
    try:
        return parser.parse_overrides([text])[0]
    except HydraException as error:
        wrong = str(error).strip().splitlines()[0]
        remedy = "list values as 1,2,3, or give an interval(1,3), with quotes around signs"
        raise UserError(text, wrong, remedy) from None


def _dimension(parsed: Override, text: str) -> Dimension:
    name, value = parsed.get_key_element(), parsed.value()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        assert low is not None and high is not None
        if low >= high or (log and low <= 0):
            bounds = "two numbers above 0" if log else "two numbers"
            raise UserError(text, "is no interval", f"give {bounds}, the smaller one first")
        return Interval(name, low, high, log, isinstance(low, int))
    if isinstance(value, ChoiceSweep):
        value.shuffle = False  # a trial's number says which it is, whoever counts
    try:
        values = tuple(dict.fromkeys(parsed.sweep_string_iterator()))
    except HydraException as error:
        raise UserError(text, str(error), "see Hydra's override grammar") from None
    if not values:
        raise UserError(text, "leaves nothing to choose from", "give at least one value")
    return Choices(name, values)
