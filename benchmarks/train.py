"""Training on CPUs: the UNet's step beside diffusers', and what averaged weights cost.

    python -m benchmarks.train                      # everything, ten minutes on two cores
    python -m benchmarks.train step                 # some of it
    python -m benchmarks.train --repeats 5 --keep   # also into docs/results.md

Sections: step (forward, backward, clipping and AdamW of one UNet in two libraries), ema.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.environments import DIFFUSERS, OURS, Environment, python_of
from benchmarks.tables import keep, median, spread, table
from benchmarks.trainers.work import CASES

ROOT = Path(__file__).parents[1]
UNETS = {"Latent Foundry": ("bare_ours", OURS), "diffusers": ("bare_diffusers", DIFFUSERS)}


def step(folder: Path, repeats: int) -> str:
    """Milliseconds of a training step, interleaved."""
    rows = []
    for case, sizes in CASES.items():
        seconds: dict[str, list[float]] = {name: [] for name in UNETS}
        for _ in range(repeats):
            for name, (module, environment) in UNETS.items():
                seconds[name].append(_program(folder, module, environment, case)["seconds"])
                print(f"{case}: {name}: {seconds[name][-1] * 1e3:.0f} ms", flush=True)
        ours, theirs = (median(seconds[name]) for name in UNETS)
        rows.append(
            [
                f"{case} latents, {sizes.channels} channels, batch {sizes.batch}",
                *(spread([1e3 * one for one in seconds[name]]) for name in UNETS),
                f"{theirs / ours:.2f}x",
            ]
        )
    title = "Milliseconds of a step in float32, Stable Diffusion 2's UNet with fewer channels"
    return table(title, ["", *UNETS, "ahead"], rows)


def ema(folder: Path, repeats: int) -> str:
    """Milliseconds of an update of the averages."""
    runs = [_program(folder, "ema", DIFFUSERS) for _ in range(repeats)]
    names = runs[0]["seconds"]
    milliseconds = {name: [1e3 * run["seconds"][name] for run in runs] for name in names}
    ours = median(milliseconds["Latent Foundry"])
    rows = [
        [name, spread(values), f"{median(values) / ours:.1f}x"]
        for name, values in milliseconds.items()
    ]
    size = f"{runs[0]['parameters'] / 1e6:.0f}M parameters, Stable Diffusion 2's"
    return table(
        f"Milliseconds of an update of averaged weights, {size}", ["", "ms", "times ours"], rows
    )


def _program(
    folder: Path, module: str, environment: Environment, *arguments: str
) -> dict[str, Any]:
    command = [python_of(environment, folder), "-m", f"benchmarks.trainers.{module}", *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


SECTIONS: dict[str, Callable[[Path, int], str]] = {"step": step, "ema": ema}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], default=[])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each program")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/latent-foundry-train"))
    parser.add_argument("--keep", action="store_true", help="write the tables to docs/results.md")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.sections or SECTIONS:
        text = SECTIONS[name](options.folder, options.repeats)
        print(f"\n{text}", flush=True)
        if options.keep:
            keep(f"train {name}", text)


if __name__ == "__main__":
    main()
