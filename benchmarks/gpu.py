"""Training on one GPU: `ldm train` on cached latents beside diffusers' example loop.

    python -m benchmarks.gpu --keep             # Stable Diffusion 2's UNet, bf16
    python -m benchmarks.gpu tiny --repeats 1   # anywhere with a C++ compiler: a look at the script

Programs run one after the other and again, each in a process and an environment of its own. MFU is
told against the data sheet and against a matrix product that is measured beside it.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.environments import DIFFUSERS, OURS, Environment
from benchmarks.gpus.work import CASES
from benchmarks.programs import Section, run_program, run_sections
from benchmarks.tables import median, spread, table

PROGRAMS: dict[str, tuple[str, str, Environment]] = {
    "`ldm train`": ("ours", "plain", OURS),
    "`ldm train`, compiled": ("ours", "compiled", OURS),
    "`ldm train`, a checkpoint every 100 steps": ("ours", "saving", OURS),
    "diffusers' example, cached inputs": ("diffusers_example", "cached", DIFFUSERS),
    "diffusers' example, uncached": ("diffusers_example", "uncached", DIFFUSERS),
}


def measure(case: str, folder: Path, repeats: int) -> str:
    """The table of a case."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in PROGRAMS}
    for _ in range(repeats):
        for name, runs in found.items():
            runs.append(_program(case, folder, *PROGRAMS[name]))
            print(f"{case}: {name}: {runs[-1]['images_per_second']:.1f} images/s", flush=True)
    first = found[next(iter(PROGRAMS))]
    ours = median([run["images_per_second"] for run in first])
    rows = [_row(name, runs, ours) for name, runs in found.items()]
    peak, product = first[0]["peak"], median([run["product"] for run in first])
    title = (
        f"Images/s at {case} latents, batch {CASES[case].batch}, bf16, on one {first[0]['device']} "
        f"({peak / 1e12:,.1f} TFLOP/s, {first[0]['peak_source']}; {product / 1e12:,.1f}, measured)"
    )
    columns = ["", "images/s", "of the first", "MFU", "MFU of the product", "waiting", "GB"]
    return table(title, columns, rows)


def _row(name: str, runs: Sequence[dict[str, Any]], ours: float) -> list[str]:
    speeds = [run["images_per_second"] for run in runs]
    row = [name, spread(speeds, 1), f"{median(speeds) / ours:.2f}x"]
    if "mfu" not in runs[0]:
        return [*row, "", "", "", ""]
    mfu = median([run["mfu"] for run in runs])
    of_product = median([run["mfu"] * run["peak"] / run["product"] for run in runs])
    waiting, memory = (median([run[key] for run in runs]) for key in ("waiting", "memory"))
    return [*row, f"{mfu:.1%}", f"{of_product:.1%}", f"{waiting:.2%}", f"{memory / 1e9:.1f}"]


def _program(
    case: str, folder: Path, module: str, way: str, environment: Environment
) -> dict[str, Any]:
    place = [str(folder)] if module == "ours" else []
    return run_program(environment, folder, f"benchmarks.gpus.{module}", case, *place, way)


SECTIONS: dict[str, Section] = {case: partial(measure, case) for case in CASES}

if __name__ == "__main__":
    run_sections(__doc__, "gpu", SECTIONS, default=("64x64", "32x32"))
