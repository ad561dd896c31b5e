"""The code that trains: a hash of its files and, where it can be known, revision and changes.

Where git follows the code, git says. In an image, or without git, the job's environment
tells what its submitter's checkout was; that counts only if the files here are the same ones.
"""

import base64
import hashlib
import json
import os
import subprocess
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from conf.errors import RunError
from conf.secrets import is_secret_name, without_credentials
from data.say import say

ROOT = Path(__file__).parents[2]
ROOMS = ("conf", "data", "training", "launch")
SUFFIXES = (".py", ".yaml")  # what an installation brings along
CODE, IMAGE = "LDM_CODE", "LDM_IMAGE"  # of a job: its submitter's code, the image that it runs in
SECONDS = 10.0  # that git may take: a checkout may lie on a slow disk
SHORTEST_SECRET = 8
MASK = "***"


@dataclass(frozen=True, slots=True)
class CodeState:
    """What is known of the code.

    Args:
        files: SHA-256 over the program's files and their names.
        revision: The commit, or None.
        diff: What of the program differs from it, files that git does not follow yet included;
            empty if nothing does.
    """

    files: str
    revision: str | None = None
    diff: str = ""

    @property
    def dirty(self) -> bool | None:
        """Whether the code is not what the commit has; None if none is known."""
        return None if self.revision is None else bool(self.diff)


def code_state(root: Path = ROOT, environment: Mapping[str, str] = os.environ) -> CodeState:
    """The state of the code in a folder.

    Args:
        root: The folder of the rooms.
        environment: Of this process; its secrets are left out of the diff.

    Raises:
        RunError: What the job's environment says of its code cannot be read.
    """
    files = _fingerprint(root)
    if found := _checkout(root, environment):
        return CodeState(files, *found)
    told = unpacked(environment[CODE]) if CODE in environment else None
    return told if told and told.files == files else CodeState(files)


def packed(state: CodeState) -> str:
    """A state as a line of JSON, for a job's environment; the diff is compressed."""
    diff = base64.b64encode(zlib.compress(state.diff.encode())).decode() if state.diff else ""
    return json.dumps({"revision": state.revision, "files": state.files, "diff": diff})


def unpacked(text: str) -> CodeState:
    """What `packed` has packed.

    Raises:
        RunError: It is something else.
    """
    try:
        told = json.loads(text)
        packed_diff = base64.b64decode(told["diff"], validate=True)
        diff = zlib.decompress(packed_diff).decode() if packed_diff else ""
        return CodeState(told["files"], told["revision"], diff)
    except (ValueError, KeyError, TypeError, zlib.error):
        raise RunError(f"{CODE} was changed after the job was made; submit it again") from None


def masked(text: str, environment: Mapping[str, str]) -> str:
    """A text without what is secret in the environment, and without passwords of URLs."""
    for name, value in environment.items():
        if is_secret_name(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, MASK)
    return without_credentials(text)


def _fingerprint(root: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(_files(root)):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{content} {file.relative_to(root).as_posix()}\n".encode())
    return digest.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    for room in ROOMS:
        yield from (file for file in (root / room).rglob("*") if file.suffix in SUFFIXES)


def _checkout(root: Path, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Commit and changes; None if git does not follow the code, is not there, or fails."""
    # A package that is installed somewhere below another project's checkout is none of its files.
    if _git(root, "ls-files", "--error-unmatch", "training/tracking/code.py") is None:
        return None
    revision = _git(root, "rev-parse", "HEAD")
    if revision is None:
        return None
    changes = [_git(root, "diff", "--no-ext-diff", "HEAD", "--", *ROOMS)]
    new = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *ROOMS)
    for name in filter(None, (new or "").split("\0")):
        changes.append(_git(root, "diff", "--no-ext-diff", "--no-index", "/dev/null", name))
    known = [text for text in changes if text is not None]
    if new is None or len(known) < len(changes):  # it may be changed, so it is no commit's
        say("git does not tell whether the code was changed; its record is its files' hash alone")
        return None
    return revision.strip(), masked("".join(known), environment)


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    differ = "--no-index" in arguments and done.returncode == 1
    return done.stdout.decode(errors="replace") if done.returncode == 0 or differ else None
