"""Feeds the zoo to `ldm`: a fenced child process for each kind of input, watched from outside."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.commands import ENVIRONMENT
from tests.helpers.processes import kill_process, log_tail, start_process
from tests.helpers.tars import PNG
from tests.helpers.zoo.animal import SECRET

FENCE = (sys.executable, "-m", "tests.helpers.fence")
ROOT = Path(__file__).parents[3]
SECONDS = 30.0  # that one command may take
Job = tuple[str, Sequence[str]]


class Keeper:
    """The folders of one child process.

    Args:
        folder: Where they are to be: `in` with a folder an animal, `secret`, `out`, `tmp`, `cwd`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("in", "secret", "out", "tmp", "cwd"):
            (folder / name).mkdir(parents=True)
        (folder / "secret" / "words.txt").write_text(SECRET)
        (folder / "secret" / "image.png").write_bytes(PNG[5])

    def surroundings(self) -> dict[str, tuple[int, int, int]]:
        """Everything that no command may change."""
        files = (f for name in ("in", "secret", "cwd") for f in (self.folder / name).rglob("*"))
        stats = {str(file): file.lstat() for file in files}
        return {name: (s.st_mode, s.st_size, s.st_mtime_ns) for name, s in stats.items()}

    def run(self, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
        """Runs commands; of one that hangs or kills the child, the others are run by another."""
        left, results = list(jobs), {}
        while left:
            for result in self._run(left):
                results[result["name"]] = result
            left = [job for job in left if job[0] not in results]
            if left:
                tail = log_tail(self.folder / "log")
                lost = {"code": None, "err": f"Traceback: hung, or killed the child\n{tail}"}
                results[left[0][0]] = {"name": left[0][0], "out": "", "crimes": [], **lost}
                left = left[1:]
        return results

    def _run(self, jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
        """The results up to the first job that gives none."""
        given, results, log = (self.folder / name for name in ("jobs", "results", "log"))
        given.write_text(json.dumps(jobs))
        results.write_text("")
        folders = [str(self.folder / name) for name in ("out", "tmp")]
        # `env -C` is the only way of the helper's to another folder.
        command = ["env", "-C", str(self.folder / "cwd"), *FENCE, str(given), str(results)]
        environment = {
            **ENVIRONMENT,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.folder / "tmp"),
        }
        process = start_process([*command, *folders], log, environment)
        try:
            done, since = 0, time.monotonic()
            while process.poll() is None and time.monotonic() - since < SECONDS:
                time.sleep(0.02)
                lines = results.read_text().count("\n")
                if lines > done:
                    done, since = lines, time.monotonic()
        finally:
            kill_process(process)
        whole = [
            line for line in results.read_text().splitlines(keepends=True) if line[-1:] == "\n"
        ]
        yield from map(json.loads, whole)

    def holds_secret(self) -> bool:
        """Whether the secret words are in anything that was written."""
        written = (self.folder / "out", self.folder / "tmp")
        files = (file for folder in written for file in folder.rglob("*") if file.is_file())
        return any(SECRET.encode() in file.read_bytes() for file in files)
