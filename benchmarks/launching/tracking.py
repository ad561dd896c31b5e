"""What a logged line costs a step: a matrix product is the step, and each logs a line.

    python -m benchmarks.launching.tracking off|offline|online FOLDER

Online is with a host that takes connections and never says a word.
"""

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

import torch

from conf.enums import TrackingKind
from conf.groups import TrackingConfig
from data.storage import open_prefix
from training.track import Tracker

STEPS, WARM_UP = 200, 20
SIDE = 1200
NUMBERS = 16


def measure(kind: TrackingKind, folder: Path) -> dict[str, list[float]]:
    """Seconds of each step without its line, and of each line."""
    config = TrackingConfig(kind=kind, wandb_seconds=10)
    out = open_prefix(mkdtemp(dir=folder), "out")
    tracker = Tracker(out, config, {"seed": 0}, 0, main=True)
    one = torch.randn(SIDE, SIDE)
    seconds: dict[str, list[float]] = {"step": [], "line": []}
    for place in range(1, STEPS + 1):
        began = time.perf_counter()
        float((one @ one).sum())
        middle = time.perf_counter()
        tracker.log(place, {f"number_{i}": place / (i + 1) for i in range(NUMBERS)})
        if place > WARM_UP:
            seconds["step"].append(middle - began)
            seconds["line"].append(time.perf_counter() - middle)
    tracker.close()
    return seconds


def main() -> None:
    kind, folder = TrackingKind(sys.argv[1]), Path(sys.argv[2])
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        os.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        os.environ["WANDB_API_KEY"] = "0" * 40  # of the form that a client wants; nobody reads it
        with contextlib.redirect_stdout(sys.stderr):
            seconds = measure(kind, folder)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
