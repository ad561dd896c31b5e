"""What every loader's module here shares: its command line and its clock.

    PYTHON -m benchmarks.loaders.NAME write FOLDER KIND [VARIANT]
    PYTHON -m benchmarks.loaders.NAME read  FOLDER KIND [VARIANT] [--workers N] ...

`read` prints one line of JSON: seconds to the first batch, samples a second in the first epoch, and
in the seconds after it.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.loaders.payload import BATCH, SAMPLES, digest

Batches = Iterator[tuple[Any, Any]]  # moments and text, (B, ...) each


def main(
    write: Callable[[Path, argparse.Namespace], None],
    epochs: Callable[[str, argparse.Namespace], Iterator[Batches]],
) -> None:
    """Run a loader's script.

    Args:
        write: Stores `payload.samples` in a folder.
        epochs: Gives, epoch by epoch, the batches of this rank; incomplete ones may be left out.
    """
    options = _options()
    if options.action == "write":
        write(Path(options.place), options)
        return
    if options.at:
        time.sleep(max(0.0, options.at - time.time()))
    print(json.dumps(_measure(epochs(options.place, options), options)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["write", "read"])
    parser.add_argument("place", help="folder or URL")
    parser.add_argument("kind", choices=list(SAMPLES))
    parser.add_argument("variant", nargs="?", default="")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--cache", default="", help="folder for remote shards")
    parser.add_argument("--memory", type=float, default=6.0, help="GB for whole remote shards")
    parser.add_argument("--at", type=float, default=0.0, help="when to begin, for several ranks")
    parser.add_argument("--digest", action="store_true", help="check one epoch instead")
    return parser.parse_args()


def _measure(epochs: Iterator[Batches], options: argparse.Namespace) -> dict[str, float]:
    started = time.perf_counter()
    first = next(epochs)
    if options.digest:
        found = [(len(batch[0]), digest(batch)) for batch in first]
        return {"samples": sum(n for n, _ in found), "digest": sum(d for _, d in found)}
    count, first_batch = 0, 0.0
    for batch in first:
        first_batch = first_batch or time.perf_counter() - started
        count += len(batch[0])
    first_pass = count / (time.perf_counter() - started)
    count, begun = 0, time.perf_counter()
    until = begun + options.seconds
    while (now := time.perf_counter()) < until:
        for batch in next(epochs):
            assert len(batch[0]) <= BATCH
            count += len(batch[0])
            if (now := time.perf_counter()) >= until:
                break
    rate = count / (now - begun) if count else 0.0
    return {"first_batch": first_batch, "first_pass": first_pass, "rate": rate}
