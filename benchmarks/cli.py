"""How long `ldm` takes to answer where it computes nothing: whole processes, interleaved, medians.

    python -m benchmarks.cli --repeats 15           # half a minute
    python -m benchmarks.cli --repeats 15 --keep    # also into docs/results.md

One section, starts: help, a rendered job, and mistakes, each beside what it may take. Run it where
nothing else runs, and twice: the first run fills the page cache.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.programs import ROOT, run_sections
from benchmarks.tables import spread, table

TRAIN = ("train", "experiment=sd21", "data.url=s3://bucket/latents", "out=s3://bucket/run")


@dataclass(frozen=True, slots=True)
class Case:
    """One command line.

    Args:
        name: Of it, in the table.
        arguments: Of `ldm`.
        code: That it has to end with.
        wanted: Seconds that it may take; None is not said.
    """

    name: str
    arguments: tuple[str, ...]
    code: int = 0
    wanted: float | None = None


CASES = (
    Case("`ldm --help`", ("--help",), wanted=0.3),
    Case("`ldm train --help`", ("train", "--help"), wanted=0.5),
    Case(
        "`ldm train ... cluster=slurm cluster.render=true`",
        (*TRAIN, "cluster=slurm", "cluster.nodes=4", "cluster.render=true"),
        wanted=1.0,
    ),
    Case("no such setting", (*TRAIN, "optimizer.lrr=1"), code=2),
    Case("a value of the wrong type", (*TRAIN, "optimizer.lr=fast"), code=2),
    Case("a setting that is missing", ("train", "out=run"), code=2),
    Case("`ldm status` of what is no job", ("status", "job=nothing"), code=2),
)


def starts(folder: Path, repeats: int) -> str:
    """Seconds from the start of a process to its end."""
    seconds: dict[str, list[float]] = {case.name: [] for case in CASES}
    for _ in range(repeats):
        for case in CASES:
            seconds[case.name].append(_seconds(case, folder))
    rows = [
        [case.name, spread(seconds[case.name], 2), "" if case.wanted is None else f"{case.wanted}"]
        for case in CASES
    ]
    title = f"Seconds of a whole process, {repeats} of each, interleaved"
    return table(title, ["", "seconds", "wanted, at the most"], rows)


def _seconds(case: Case, folder: Path) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *case.arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    taken = time.perf_counter() - began
    if done.returncode != case.code:
        raise SystemExit(f"{case.name}: exit code {done.returncode}\n{done.stderr.decode()}")
    return taken


if __name__ == "__main__":
    run_sections(__doc__, "cli", {"starts": starts})
