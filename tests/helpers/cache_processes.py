"""`ldm cache` in processes that have torch loaded already: cheap to start, and to be killed.

What a process does is traced from within the test's own child, never by the product: it adds a
line to a file for each shard that it has encoded, before that is written.
"""

import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from data.process import die_with
from data.storage import open_prefix
from launch.cli import run
from tests.helpers.datasets import files_of
from training.cache import pipeline
from training.cache.assemble import ShardWork
from training.models.operators import define_missing_operators

define_missing_operators()

# Loaded once in the process that all others are forked from.
PRELOADED = [
    __name__,
    "transformers.models.bert.modeling_bert",
    "pytest",
    "s3fs",
    "fsspec.implementations.local",
    "data.verify",
    "tests.helpers.damage",
    "tests.helpers.tiny_bert",
]

_forks = get_context("forkserver")
_forks.set_forkserver_preload(PRELOADED)

HIDDEN = ("summary",)  # beginnings of the names of files that hold times


@dataclass(frozen=True)
class CacheProcess:
    """A running `ldm cache`.

    Args:
        process: The process.
        log: What it prints.
        trace: The numbers of the shards that it has encoded.
    """

    process: Any
    log: Path
    trace: Path

    @property
    def encoded(self) -> list[int]:
        """Shards that it has encoded so far, whether or not they were written."""
        return [int(line) for line in self.trace.read_text().splitlines()]

    def ended(self, timeout: float = 120) -> int:
        """Waits for its end; gives the exit code."""
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            self.kill()
            raise AssertionError(f"hung until the time limit:\n{self.log.read_text()}")
        return code

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.join()


def start_cache(
    folder: Path,
    settings: Iterable[str],
    threads: int = 1,
    meeting: Path | None = None,
    **environment: str,
) -> CacheProcess:
    """Starts `ldm cache` in a process of its own.

    Args:
        folder: For what it prints and the trace; made anew if it is there.
        settings: As on the command line.
        threads: Of torch.
        meeting: A folder where it waits for another one before it begins to encode.
        environment: Added to this process's, such as RANK.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, trace = folder / "log", folder / "trace"
    log.write_bytes(b"")
    trace.write_bytes(b"")
    known = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    arguments = (list(settings), log, trace, threads, meeting, {**known, **environment})
    process = _forks.Process(target=_run, args=arguments, daemon=True)
    process.start()
    return CacheProcess(process, log, trace)


def _run(
    settings: list[str],
    log: Path,
    trace: Path,
    threads: int,
    meeting: Path | None,
    environment: Mapping[str, str],
) -> None:
    die_with(os.getppid())
    os.environ.update(environment)
    torch.set_num_threads(threads)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    lines = os.open(trace, os.O_WRONLY | os.O_APPEND)
    write = pipeline.write_shard

    def traced(config: Any, encoder: Any, targets: Any, work: ShardWork) -> Any:
        os.write(lines, f"{work.number}\n".encode())
        return write(config, encoder, targets, work)

    pipeline.write_shard = traced
    if meeting is not None:
        _meet_before_encoding(meeting)
    sys.exit(run(["cache", *settings]))


def _meet_before_encoding(meeting: Path) -> None:
    """Has this process's part of the work wait until two are ready for it."""
    work = pipeline.Pipeline.run

    def wait_and_work(self: Any) -> int:
        meeting.mkdir(exist_ok=True)
        (meeting / str(os.getpid())).touch()
        while len(list(meeting.iterdir())) < 2:
            time.sleep(0.001)
        return work(self)

    pipeline.Pipeline.run = wait_and_work


def visible_files(url: Path | str) -> dict[str, bytes]:
    """Every file of a cache that counts, by name: no hidden one, and no summary."""
    if isinstance(url, Path):
        found = files_of(url)
    else:
        out = open_prefix(url, "out")
        root = out.path("").rstrip("/")
        names = [name[len(root) + 1 :] for name in out.fs.find(root)]
        found = {name: out.read(name) for name in names}
    return {
        name: content
        for name, content in found.items()
        if not name.startswith(HIDDEN) and not name.rpartition("/")[2].startswith(".")
    }


def finished_numbers(url: Path | str) -> set[int]:
    """Numbers of the shards of a cache that are finished."""
    names = open_prefix(str(url), "out").names("index")
    return {int(name.partition("-")[0]) for name in names if name.endswith(".json")}
