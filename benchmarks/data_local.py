"""Latents on the local disk, in the page cache: one process, and all cores."""

from itertools import product
from pathlib import Path

from benchmarks.contestants import (
    ALL,
    HF,
    LATENT_FOUNDRY,
    LITDATAS,
    MOSAIC,
    WEBDATASETS,
    Contestant,
    prepare,
    read,
    read_in_ranks,
)
from benchmarks.loaders.payload import SAMPLES, sample_bytes
from benchmarks.tables import median, spread, table

GROUPS: tuple[tuple[str, tuple[Contestant, ...]], ...] = (
    ("webdataset's best", WEBDATASETS),
    ("mosaicml-streaming", (MOSAIC,)),
    ("HF datasets' best", HF),
    ("litdata's best", LITDATAS),
)


# The fastest of each in one process.
BEST = (LATENT_FOUNDRY, WEBDATASETS[2], LITDATAS[1], MOSAIC, HF[1])


def one_process(folder: Path, repeats: int) -> str:
    """Samples a second to a collated batch of 32, in one process without workers."""
    kinds = list(SAMPLES)
    prepare(folder, ALL, kinds)
    warm: dict[tuple[Contestant, str], list[float]] = {key: [] for key in product(ALL, kinds)}
    first: dict[tuple[Contestant, str], list[float]] = {key: [] for key in product(ALL, kinds)}
    for _ in range(repeats):
        for contestant, kind in product(ALL, kinds):
            figures = read(folder, contestant, kind)
            first[contestant, kind].append(figures["first_pass"])
            warm[contestant, kind].append(figures["rate"])
    columns = ["loader"]
    for kind in kinds:
        columns += [f"{kind}: first pass", f"{kind}: later", "GB/s"]
    rows = []
    for contestant in ALL:
        row = [contestant.name]
        for kind in kinds:
            rates = warm[contestant, kind]
            gigabytes = median(rates) * sample_bytes(kind) / 1e9
            row += [f"{median(first[contestant, kind]):,.0f}", spread(rates), f"{gigabytes:.2f}"]
        rows.append(row)
    text = table("Samples/s to a batch of 32, one process, page cache warm", columns, rows)
    # A peer whose buffer has to fill first is better over whole epochs than over some seconds.
    better = {key: max(first[key], warm[key], key=median) for key in warm}
    ratios = [
        [name, *(f"{_ahead(better, group, kind):.1f}x" for kind in kinds)] for name, group in GROUPS
    ]
    ratios.append(["litdata's best, first pass", *(
        f"{_ahead(first, LITDATAS, kind):.1f}x" for kind in kinds
    )])  # fmt: skip
    return text + "\n" + table("Latent Foundry is ahead of", ["", *kinds], ratios)


def _ahead(
    rates: dict[tuple[Contestant, str], list[float]], group: tuple[Contestant, ...], kind: str
) -> float:
    there = [one for one in group if (one, kind) in rates]
    best = max(median(rates[contestant, kind]) for contestant in there)
    return median(rates[LATENT_FOUNDRY, kind]) / best


def all_cores(folder: Path, repeats: int) -> str:
    """The same with two cores, each contestant at its best setting, which is looked for first."""
    kinds = list(SAMPLES)
    prepare(folder, BEST, kinds)
    best = {key: _best_setting(folder, *key) for key in product(BEST, kinds)}
    rates: dict[tuple[Contestant, str], list[float]] = {key: [] for key in best}
    for _ in range(repeats):
        for key, setting in best.items():
            rates[key].append(_rate(folder, *key, setting))
    columns = ["loader", *(name for kind in kinds for name in (kind, "at its best with"))]
    rows = [
        [one.name, *(text for k in kinds for text in (spread(rates[one, k]), best[one, k]))]
        for one in BEST
    ]
    text = table("Samples/s with two cores, each at its best setting", columns, rows)
    ratios = [
        [name, *(f"{_ahead(rates, group, kind):.1f}x" for kind in kinds)] for name, group in GROUPS
    ]
    return text + "\n" + table("Latent Foundry is ahead of", ["", *kinds], ratios)


def _settings(contestant: Contestant) -> list[str]:
    """Threads or worker processes of one process, or processes that each read by themselves."""
    unit = "threads" if contestant is LATENT_FOUNDRY else "workers"
    alone = [f"{number} {unit}" for number in range(4 if unit == "threads" else 3)]
    # mosaicml-streaming's processes would have to be ranks of torch.distributed.
    return alone if contestant is MOSAIC else [*alone, "2 processes"]


def _best_setting(folder: Path, contestant: Contestant, kind: str) -> str:
    settings = _settings(contestant)
    found = {setting: _rate(folder, contestant, kind, setting) for setting in settings}
    print(f"{contestant.name}, {kind}: {found}", flush=True)
    return max(found, key=lambda setting: found[setting])


def _rate(folder: Path, contestant: Contestant, kind: str, setting: str) -> float:
    number, unit = setting.split()
    if unit == "processes":
        return read_in_ranks(folder, contestant, kind, int(number))
    return read(folder, contestant, kind, f"--workers={number}")["rate"]
