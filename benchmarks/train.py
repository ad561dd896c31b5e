"""Training on CPUs: the UNet's step, the loop around it, the engines, and averaged weights.

    python -m benchmarks.train                      # everything, ten minutes on two cores
    python -m benchmarks.train step                 # some of it
    python -m benchmarks.train --repeats 5 --keep   # also into docs/results.md

Sections: step (forward, backward, clipping and AdamW of one UNet in two libraries), loop (`ldm
train` beside a loop that has its batch already), engines (of two ranks, Accelerate with DeepSpeed
as it comes beside them), ema, checkpoint (how long training stands still to save a gigabyte).
"""

from pathlib import Path
from typing import Any

from benchmarks.environments import DIFFUSERS, OURS, Environment
from benchmarks.programs import Section, run_program, run_sections
from benchmarks.tables import median, spread, table
from benchmarks.trainers.work import CASES

ROOT = Path(__file__).parents[1]
STATE_GB = 1.0  # weights, averages and moments of the section on checkpoints
ENGINE_BATCHES = ((16, 20), (64, 6))  # images over both ranks, steps that are timed
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


def loop(folder: Path, repeats: int) -> str:
    """Milliseconds of a step of a bare loop and of `ldm train`, in turn in one process."""
    names = {"bare": "a bare loop", "single": "`ldm train`"}
    seconds: dict[str, list[float]] = {kind: [] for kind in names}
    more = []
    for _ in range(repeats):
        run = _program(folder, "loop", OURS, "both", str(folder))
        for kind, values in seconds.items():
            values += run[kind]
        more.append(100 * (median(run["single"]) / median(run["bare"]) - 1))
        print(f"`ldm train` takes {more[-1]:.1f}% more", flush=True)
    rows = [[names[kind], spread([1e3 * x for x in xs], 1)] for kind, xs in seconds.items()]
    rows.append(["more, by the medians of a process, %", spread(more, 1)])
    count = len(seconds["bare"])
    title = f"Milliseconds of a step, batch 16, float32, two threads, {count} steps each"
    return table(title, ["", "ms"], rows)


def engines(folder: Path, repeats: int) -> str:
    """Milliseconds of a step on two ranks of one thread each, with a small batch and a larger one.

    What an engine exchanges and copies does not depend on the batch.
    """
    return "\n".join(_engines(folder, repeats, *batch) for batch in ENGINE_BATCHES)


def _engines(folder: Path, repeats: int, batch: int, steps: int) -> str:
    kinds = ("ddp", "zero1", "zero2", "deepspeed")
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, values in seconds.items():
            arguments = (kind, str(folder), str(batch), str(steps))
            values.append(_program(folder, "loop", OURS, *arguments, ranks=2)["seconds"])
            print(f"batch {batch}: {kind}: {values[-1] * 1e3:.1f} ms", flush=True)
    names = {"deepspeed": "Accelerate and DeepSpeed by hand, stage 2, batch in memory"}
    ddp = median(seconds["ddp"])
    rows = [
        [
            names.get(kind, f"`ldm train`, {kind}"),
            spread([1e3 * x for x in xs], 1),
            f"{median(xs) / ddp:.2f}x",
        ]
        for kind, xs in seconds.items()
    ]
    title = f"Milliseconds of a step, two ranks, batch {batch} over both"
    return table(title, ["", "ms", "of ddp's"], rows)


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


def checkpoint(folder: Path, repeats: int) -> str:
    """Seconds that training stands still, and those until the files are there."""
    place = folder / "checkpoint"
    run = _program(folder, "checkpoint", OURS, str(STATE_GB), str(repeats), str(place))
    ours = median(run["seconds"]["Latent Foundry"])
    rows = [
        [
            name,
            spread(values, 3),
            f"{median(values) / ours:.1f}x",
            f"{run['first'][name]:.3f}",
            spread(run["whole"][name], 2),
        ]
        for name, values in run["seconds"].items()
    ]
    title = (
        f"Seconds by which a checkpoint of {run['bytes'] / 1e9:.2f} GB delays training, whose step "
        f"takes {run['step']:.2f} s; one process of one thread"
    )
    return table(title, ["", "delay", "times ours", "the first", "until it is there"], rows)


def _program(
    folder: Path, module: str, environment: Environment, *arguments: str, ranks: int = 1
) -> dict[str, Any]:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    started = launcher if ranks > 1 else []
    program = f"benchmarks.trainers.{module}"
    return run_program(environment, folder, *started, program, *arguments, threads=2 // ranks)


SECTIONS: dict[str, Section] = {
    "step": step,
    "loop": loop,
    "engines": engines,
    "ema": ema,
    "checkpoint": checkpoint,
}


if __name__ == "__main__":
    run_sections(__doc__, "train", SECTIONS)
