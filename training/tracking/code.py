"""The state of the code that trains: revision and changes, where it runs from a git checkout."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conf.errors import without_credentials

ROOT = Path(__file__).parents[2]
SECONDS = 10.0  # that git may take: a checkout may lie on a slow disk
SECRET_NAMES = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL|JWT", re.IGNORECASE)
SHORTEST_SECRET = 8
MASK = "***"


@dataclass(frozen=True, slots=True)
class CodeState:
    """What git says of the code.

    Args:
        revision: The commit.
        diff: What differs from it in files that git follows; empty if nothing does.
    """

    revision: str
    diff: str

    @property
    def dirty(self) -> bool:
        """Whether the code is not what the commit has."""
        return bool(self.diff)


def code_state(root: Path = ROOT) -> CodeState | None:
    """The state of the code in a folder; None if git does not follow it, or is not there."""
    # A package that is installed somewhere below another project's checkout is none of its files.
    if _git(root, "ls-files", "--error-unmatch", "training/tracking/code.py") is None:
        return None
    revision = _git(root, "rev-parse", "HEAD")
    if revision is None:
        return None
    diff = _git(root, "diff", "--no-ext-diff", "HEAD") or ""
    return CodeState(revision.strip(), masked(diff, os.environ))


def masked(text: str, environment: Mapping[str, str]) -> str:
    """A text without what is secret in the environment, and without passwords of URLs."""
    for name, value in environment.items():
        if SECRET_NAMES.search(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, MASK)
    return without_credentials(text)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
