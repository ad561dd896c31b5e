"""A process that saves one checkpoint, half of a second one, and trains on until it is killed."""

import sys
import time

from data.storage import Prefix, open_prefix
from tests.helpers.engines import save_now
from tests.helpers.small_engine import average, small_engine, step
from training.engine.checkpoint import Progress
from training.engine.pieces import EMA, pieces_of
from training.engine.retention import Keep
from training.engine.saving import Saver

SECOND = 2


def main(folder: str, kind: str) -> None:
    """Never returns.

    Args:
        folder: The run.
        kind: Of the second checkpoint's files, the one that comes to half.
    """
    out, write = open_prefix(folder, "out"), Prefix.write

    def hanging(self: Prefix, name: str, content: bytes | memoryview) -> None:
        if name.startswith(kind) and self.root.endswith(f"{SECOND:08d}"):
            write(self, name, content[: len(content) // 2])
            print("half is there", flush=True)
            time.sleep(600)
        write(self, name, content)

    engine = small_engine(seed=0)
    step(engine)
    save_now(out, engine, average(engine), Progress(4, 1))
    Prefix.write = hanging  # type: ignore[method-assign]
    saver = Saver(out, engine, Keep(1))
    saver.save(pieces_of(engine, {EMA: average(engine)}), Progress(4 * SECOND, SECOND))
    while True:
        step(engine)
        print("trained on", flush=True)
        time.sleep(0.01)


if __name__ == "__main__":
    main(*sys.argv[1:])
