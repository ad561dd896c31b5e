"""What it takes until a training trains, what a sweep adds to it, and what a record costs.

    python -m benchmarks.launch                      # everything, some minutes on two cores
    python -m benchmarks.launch first_step           # some of it
    python -m benchmarks.launch --repeats 5 --keep   # also into docs/results.md

Sections: first_step (from the command to the end of the first step of a tiny `ldm train`, on one
rank and on two, and what takes the time), sweep (two trials beside two single runs), tracking (a
line that is logged in each step: W&B off, offline, and online with a host that never answers).
"""

import shutil
import time
from pathlib import Path
from statistics import mean

from benchmarks.environments import OURS
from benchmarks.launching.marks import FOLDER, SITE, read_marks
from benchmarks.launching.work import SETTINGS, data_of, seconds_of
from benchmarks.programs import Section, run_program, run_sections
from benchmarks.tables import median, spread, table

SAMPLES = 64
PARTS = (
    ("until the rank's interpreter runs", "command", "process"),
    ("interpreter", "process", "compose_config begin"),
    ("configuration", "compose_config begin", "compose_config end"),
    ("imports, torch's among them", "compose_config end", "train_denoiser begin"),
    ("opening the data, building the UNet", "train_denoiser begin", "train begin"),
    ("claiming the run", "train begin", "build_engine begin"),
    ("engine", "build_engine begin", "build_engine end"),
    ("record, optimizer, first batch", "build_engine end", "dry_batch begin"),
    ("dry batch", "dry_batch begin", "dry_batch end"),
    ("first step", "dry_batch end", "Loop._step end"),
    ("all", "command", "Loop._step end"),
)
RANKS = {1: ("engine=single",), 2: ("engine=ddp", "cluster.processes=2")}
KINDS = {
    "off": "metrics.jsonl alone",
    "offline": "W&B offline",
    "online": "W&B online, no answer",
}


def first_step(folder: Path, repeats: int) -> str:
    """Seconds from the command to the first step, by what takes them, on rank 0."""
    seconds: dict[int, list[dict[str, float]]] = {ranks: [] for ranks in RANKS}
    for _ in range(repeats):
        for ranks, told in RANKS.items():
            marks = _marks(folder, told)
            parts = {name: marks[end] - marks[begin] for name, begin, end in PARTS}
            seconds[ranks].append(parts)
            print(f"{ranks} ranks: {parts['all']:.2f} s", flush=True)
    rows = [
        [name, *(spread([run[name] for run in runs], 2) for runs in seconds.values())]
        for name, _, _ in PARTS
    ]
    title = f"Seconds from `ldm train` to its first step, {repeats} of each, interleaved"
    return table(title, ["", *(f"ranks: {ranks}" for ranks in seconds)], rows)


def sweep(folder: Path, repeats: int) -> str:
    """Seconds of a sweep of two trials, and of the same two trainings by themselves."""
    latents, held_out = data_of(folder)
    told = [*SETTINGS, f"data.url={latents}", f"validation.url={held_out}", "validation.samples=8"]
    told += [f"train.samples={SAMPLES}", f"validation.every_samples={SAMPLES}"]
    rates = ("1e-3", "1e-4")
    alone, swept = [], []
    for _ in range(repeats):
        out = _fresh(folder / "sweep")
        runs = [("train", *told, f"optimizer.lr={rate}", f"out={out}/{rate}") for rate in rates]
        alone.append(sum(seconds_of(folder, *run) for run in runs))
        listed = f"optimizer.lr={','.join(rates)}"
        swept.append(seconds_of(folder, "train", "-m", *told, listed, f"out={out}/sweep"))
        print(f"alone {alone[-1]:.2f} s, swept {swept[-1]:.2f} s", flush=True)
    more = [both - two for both, two in zip(swept, alone, strict=True)]
    rows = [
        ["two runs, one after the other", spread(alone, 2)],
        ["`ldm train -m` of both", spread(swept, 2)],
        ["more", spread(more, 2)],
    ]
    return table(f"Seconds of two tiny trainings, {repeats} of each", ["", "seconds"], rows)


def tracking(folder: Path, repeats: int) -> str:
    """Milliseconds of training's thread for a line, and of the step beside it."""
    found: dict[str, dict[str, list[float]]] = {kind: {"step": [], "line": []} for kind in KINDS}
    for _ in range(repeats):
        for kind, lists in found.items():
            run = run_program(OURS, folder, "benchmarks.launching.tracking", kind, str(folder))
            for name, values in lists.items():
                values += run[name]
            print(f"{kind}: {1e3 * median(run['line']):.3f} ms a line", flush=True)
    rows = [
        [
            KINDS[kind],
            f"{1e3 * median(lists['line']):.3f}",
            f"{1e3 * mean(lists['line']):.3f}",
            f"{1e3 * max(lists['line']):.1f}",
            f"{1e3 * median(lists['step']):.1f}",
            f"{100 * sum(lists['line']) / sum(lists['step']):.2f}%",
        ]
        for kind, lists in found.items()
    ]
    columns = ["", "median", "mean", "most", "step beside it, median", "lines, of all steps"]
    return table("Milliseconds of a line of 16 numbers, one in every step", columns, rows)


def _marks(folder: Path, told: tuple[str, ...]) -> dict[str, float]:
    """When the parts of one start began and ended."""
    latents, _ = data_of(folder)
    site, marks = folder / "site", _fresh(folder / "marks")
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(SITE)
    out = _fresh(folder / "first_step")
    settings = (*SETTINGS, *told, f"data.url={latents}", f"out={out}/run", "train.samples=8")
    began = time.time()
    seconds_of(folder, "train", *settings, **{FOLDER: str(marks), "PYTHONPATH": str(site)})
    return {"command": began, **read_marks(marks)}


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


SECTIONS: dict[str, Section] = {"first_step": first_step, "sweep": sweep, "tracking": tracking}


if __name__ == "__main__":
    run_sections(__doc__, "launch", SECTIONS)
