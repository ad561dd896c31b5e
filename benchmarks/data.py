"""The data plane beside its peers: the same samples, interleaved runs, medians.

    python -m benchmarks.data                       # everything, half an hour on two cores
    python -m benchmarks.data local cores           # some of it
    python -m benchmarks.data --repeats 7 --keep    # also into docs/results.md

Sections: local (one process), cores (all of them, each loader at its best setting), s3 (a real S3
server on loopback), link (20 ms and 93 MB/s a connection away), faults, resume, order, shard.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from benchmarks import data_local, data_ours, data_remote
from benchmarks.tables import keep

SECTIONS: dict[str, Callable[[Path, int], str]] = {
    "local": data_local.one_process,
    "cores": data_local.all_cores,
    "s3": data_remote.loopback,
    "link": data_remote.far_away,
    "faults": data_remote.faults,
    "resume": data_ours.resume,
    "order": data_ours.order,
    "shard": data_ours.shard,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], default=[])
    parser.add_argument("--repeats", type=int, default=5, help="runs of each contestant")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/latent-foundry-benchmarks"))
    parser.add_argument("--keep", action="store_true", help="write the tables to docs/results.md")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # torch's threads beside the loaders' only take turns
    for name in options.sections or SECTIONS:
        text = SECTIONS[name](options.folder, options.repeats)
        print(f"\n{text}", flush=True)
        if options.keep:
            keep(f"data {name}", text)


if __name__ == "__main__":
    main()
