"""The line that a process ends with: handed to the launcher above it, or printed."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from data.say import one_line

# Folder in which ranks leave the line that they end with.
RANK_ERRORS = "LDM_RANK_ERRORS"


@dataclass(frozen=True, slots=True)
class RankError:
    """The line and the exit code that a rank ended with."""

    line: str
    code: int


def leave_last_words(line: str, code: int) -> None:
    """Hand a rank's last line to its launcher, which says it once for all ranks.

    Without a launcher it goes to standard error, as one line.
    """
    if RANK_ERRORS not in os.environ:
        print(f"ldm: {one_line(line)}", file=sys.stderr, flush=True)
        return
    name = f"{time.time_ns()}-{os.environ.get('RANK', '0')}-{code}"
    Path(os.environ[RANK_ERRORS], name).write_text(line)


def rank_errors() -> list[RankError]:
    """What the ranks of this launcher have left so far, in order of time."""
    if RANK_ERRORS not in os.environ:
        return []
    files = sorted(Path(os.environ[RANK_ERRORS]).iterdir())
    return [RankError(file.read_text(), int(file.name.rpartition("-")[2])) for file in files]
