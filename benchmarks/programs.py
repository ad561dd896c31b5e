"""What benchmarks share: a program in an environment of its own, and a command line of sections."""

import argparse
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environments import Environment, python_of
from benchmarks.tables import keep

ROOT = Path(__file__).parents[1]

# Called with a folder and a number of repeats; gives tables in Markdown.
Section = Callable[[Path, int], str]


def run_program(
    environment: Environment, folder: Path, *arguments: str, threads: int | None = None
) -> dict[str, Any]:
    """What a module of `benchmarks` says in its last line, as JSON.

    Args:
        environment: Whose interpreter runs it.
        folder: Of the environments.
        arguments: What follows `python -m`.
        threads: Of OpenMP; None leaves it to the program.
    """
    counted = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [python_of(environment, folder), "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **counted},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_sections(
    description: str | None,
    name: str,
    sections: Mapping[str, Section],
    default: Sequence[str] = (),
) -> None:
    """The command line of a benchmark: some of its sections or all, printed, or kept too.

    Args:
        description: Of the benchmark.
        name: Of its folder, and of its tables in docs/results.md.
        sections: By name.
        default: Which are run if none is named; none is all.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=[[], *sections], default=[])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each program")
    parser.add_argument("--folder", type=Path, default=Path(f"/tmp/latent-foundry-{name}"))
    parser.add_argument("--keep", action="store_true", help="write the tables to docs/results.md")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for section in options.sections or default or sections:
        text = sections[section](options.folder, options.repeats)
        print(f"\n{text}", flush=True)
        if options.keep:
            keep(f"{name} {section}", text)
