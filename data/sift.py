"""Which pairs of a source come into the dataset: filters, and the budget of bad samples.

All of it is decided sample by sample from source and settings, so that shards are the same
whichever process makes them. What was left out is kept in each shard's entry and, once the dataset
is whole, in `skipped.json` beside the manifest.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from conf.errors import UserError
from conf.groups import FilterConfig
from conf.rules import field_bound
from conf.schema import ShardCommand
from data.sample import Pair
from data.sources import BadSample, Part
from data.storage import Prefix

SKIPPED = "skipped.json"


@dataclass(slots=True)
class Skipped:
    """What was left out.

    Args:
        bad: Key, kind and words of every bad sample, in the source's order.
        filtered: How many samples each filter left out.
    """

    bad: list[dict[str, str]] = field(default_factory=list)
    filtered: Counter[str] = field(default_factory=Counter)

    def add(self, part: Mapping[str, Any]) -> None:
        """Count what `to_dict` gave of another shard too."""
        self.bad.extend(part.get("bad", []))
        self.filtered.update(part.get("filtered", {}))

    @property
    def samples(self) -> int:
        """How many samples were left out."""
        return len(self.bad) + self.filtered.total()

    @property
    def kinds(self) -> dict[str, int]:
        """How many samples are bad in which way."""
        return dict(sorted(Counter(sample["kind"] for sample in self.bad).items()))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; empty if nothing was left out."""
        content = {"bad": self.bad, "filtered": dict(sorted(self.filtered.items()))}
        return {name: value for name, value in content.items() if value}

    def __str__(self) -> str:
        bad, filtered = len(self.bad), self.filtered.total()
        return (
            f"{bad:,} bad samples skipped{_counts(self.kinds)}, "
            f"{filtered:,} left out by filters{_counts(dict(sorted(self.filtered.items())))}"
        )


def skipped_of(parts: Iterable[Mapping[str, Any]]) -> Skipped:
    """Joins what `to_dict` gave of several shards."""
    whole = Skipped()
    for part in parts:
        whole.add(part)
    return whole


def read_skipped(out: Prefix) -> Skipped:
    """What was left out of a finished dataset."""
    try:
        return skipped_of([json.loads(out.read(SKIPPED))])
    except FileNotFoundError:
        return Skipped()


def sift(part: Part, config: ShardCommand, skipped: Skipped) -> Iterator[Pair]:
    """The pairs of a part that come into the dataset; the others are added to `skipped`.

    Raises:
        BadSample: A sample is bad, and none may be.
    """
    for key in part.keys:
        try:
            pair = part.pair(key)
        except BadSample as fault:
            skip_bad(key, fault, config.max_bad_share, skipped)
            continue
        reason = left_out_by(pair.meta, config.filter)
        if reason is None:
            yield pair
        else:
            skipped.filtered[reason] += 1


def skip_bad(key: str, fault: BadSample, max_bad_share: float, skipped: Skipped) -> None:
    """Add a bad sample to `skipped`.

    Raises:
        BadSample: None may be bad.
    """
    if max_bad_share == 0:
        raise fault
    words = f"{fault.where}: {fault.detail or fault.kind}"
    skipped.bad.append({"key": key, "kind": fault.kind, "what": words})


def left_out_by(meta: Mapping[str, Any], config: FilterConfig) -> str | None:
    """The filter that leaves a sample out, or None."""
    smaller, larger = sorted(meta["original_size"])
    if smaller < config.min_side:
        return "min_side"
    if config.max_aspect is not None and larger > config.max_aspect * smaller:
        return "max_aspect"
    for text in config.fields:
        name, sign, bound = field_bound(text)
        number = _number(meta.get(name))
        if number is None:
            return f"no number {name}"
        if number < bound if sign == ">=" else number > bound:
            return text
    return None


def check_budget(skipped: Skipped, samples: int, max_bad_share: float) -> None:
    """Stop when more samples are bad than may be.

    Raises:
        UserError: They are.
    """
    if len(skipped.bad) > max_bad_share * samples:
        raise UserError(
            f"max_bad_share={max_bad_share:g}",
            f"{len(skipped.bad):,} of {samples:,} samples are bad{_counts(skipped.kinds)}, "
            f"such as {skipped.bad[0]['what']}",
            "mend or remove them, or allow a larger share",
        )


def _number(value: Any) -> float | None:
    """A number, which a .csv holds as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number == number else None


def _counts(counts: Mapping[str, int]) -> str:
    words = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return f" ({words})" if words else ""
