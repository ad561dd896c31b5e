"""Tables of medians: printed, and kept in docs/results.md with hardware and date."""

import datetime
import os
import platform
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """A median with the least and the most beside it."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} - {high:,.{digits}f})"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown under a title."""
    lines = [f"**{title}**", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def machine() -> str:
    """The hardware in words."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*: (.*)", cpuinfo)
    name = found[1] if found else platform.processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {name}, {memory:.0f} GB, Python {platform.python_version()}"


def keep(section: str, text: str) -> None:
    """Put a section's tables into docs/results.md in the place of those that were there."""
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    today = datetime.date.today().isoformat()
    content = f"{begin}\n{today}, {machine()}.\n\n{text.rstrip()}\n{end}"
    there = RESULTS.read_text()
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(there):
        raise SystemExit(f"{RESULTS} has no place for {section}: add {begin} and {end}")
    RESULTS.write_text(pattern.sub(lambda _: content, there))
