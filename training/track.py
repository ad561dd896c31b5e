"""The record of a run: metrics.jsonl always, TensorBoard and Weights & Biases by choice.

Training never waits for any of it: what is logged goes into memory and into bounded queues, and
threads bring it to where it belongs. What must be there is written with each checkpoint.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.enums import TrackingKind
from conf.groups import MetricsConfig, TrackingConfig
from data.say import say
from data.storage import Prefix
from training.tracking.behind import Behind
from training.tracking.board import Board, require_board
from training.tracking.files import METRICS, RunFiles
from training.tracking.offline_file import last_step
from training.tracking.sink import Histogram, Saved, Sink
from training.tracking.wandb_run import (
    WandbSink,
    run_id,
    start_wandb,
    wandb_folder,
    wandb_key,
)

SECONDS_FOR_FILES = 60.0  # that the last write to a slow disk or store may take


class Tracker:
    """Keeps the record of a run; made on every rank, writes on one.

    Args:
        out: The run.
        config: What keeps it besides metrics.jsonl.
        settings: The run's resolved configuration.
        samples_seen: Where the run goes on: later lines, of a process that died, are dropped.
        main: Whether this rank writes.
        known: The W&B id that the run's checkpoint says.
        lineage: What the run came from, as `training.tracking.lineage` has it.

    Attributes:
        wandb_id: Of the W&B run; None where there is none, or on ranks that do not write.

    Raises:
        UserError: W&B or TensorBoard is asked for and cannot be used.
    """

    def __init__(
        self,
        out: Prefix,
        config: TrackingConfig,
        settings: dict[str, Any],
        samples_seen: int,
        main: bool,
        known: str | None = None,
        lineage: Mapping[str, Any] | None = None,
    ) -> None:
        self._main = main
        self.wandb_id: str | None = None
        self._sinks: list[tuple[Behind[Sink], float]] = []
        if not main:
            return
        self._files = RunFiles(out, samples_seen)
        self._written, self._unwritten = time.monotonic(), False
        self._storage = Behind[None](METRICS, lambda: None, lambda _: None)
        if isinstance(config, MetricsConfig) and config.tensorboard:
            require_board()
            board = Behind[Sink]("TensorBoard", lambda: Board(out, samples_seen), _close)
            self._sinks.append((board, SECONDS_FOR_FILES))
        if config.kind is not TrackingKind.off:
            key, lines = wandb_key(config), self._files.lines
            self.wandb_id = identity = run_id(out, known)

            def begin() -> Sink:
                folder = wandb_folder(out)
                told = {**settings, "lineage": dict(lineage or {})}
                there = last_step(folder, identity)  # before there is a file of this process
                run = start_wandb(out, config, told, folder, identity, key)
                sink = WandbSink(run, there, lines, samples_seen)
                for one in (lineage or {}).get("data", ()):
                    sink.reads(one)
                return sink

            wandb = Behind[Sink]("W&B", begin, _close)
            # For an answer at the start, if that is still to come, and one at the end.
            self._sinks.append((wandb, 2 * config.wandb_seconds + SECONDS_FOR_FILES))

    def require(self, may_write: Callable[[], None]) -> None:
        """Have the run's files written only while this raises nothing."""
        if self._main:
            self._files.require = may_write

    def log(self, samples_seen: int, values: Mapping[str, float]) -> None:
        """Record the values at a place of the run."""
        if not self._main:
            return
        self._files.add({"samples_seen": samples_seen, **values})
        self._tell(lambda sink: sink.log(samples_seen, values))
        if time.monotonic() - self._written > self._files.pause:
            self._write_behind()

    def show(self, samples_seen: int, folder: str, picture: NDArray[np.uint8]) -> None:
        """Keep a picture (H, W, 3), uint8, as FOLDER/SAMPLES.png of the run, and log it."""
        if not self._main:
            return
        self._files.add_picture(f"{folder}/{samples_seen:09d}.png", picture)
        self._tell(lambda sink: sink.show(samples_seen, folder, picture))
        self._write_behind()

    def spread(self, samples_seen: int, histograms: Mapping[str, Histogram]) -> None:
        """Record histograms in TensorBoard and W&B; metrics.jsonl has none."""
        self._tell(lambda sink: sink.spread(samples_seen, histograms))

    def alert(self, title: str, text: str) -> None:
        """Have W&B call people; whoever calls this sees to a line in the log."""
        self._tell(lambda sink: sink.alert(title, text))

    def saved(self, checkpoint: Saved) -> None:
        """Record a checkpoint that has been committed."""
        self._tell(lambda sink: sink.saved(checkpoint))

    def writer(self) -> Callable[[], None]:
        """What brings the run's files up to now, whenever and in whichever thread it is called."""
        return self._files.writer() if self._main else lambda: None

    def close(self) -> None:
        """Write what is left, and end every record, within bounds."""
        if not self._main:
            return
        self._storage.close(SECONDS_FOR_FILES)
        self.writer()()
        for behind, seconds in self._sinks:
            if not behind.close(seconds):
                say(f"{behind.name} is not done after {seconds:g} s and is left to itself")

    def _tell(self, call: Callable[[Sink], None]) -> None:
        for behind, _ in self._sinks:
            behind.put(call)

    def _write_behind(self) -> None:
        write = self.writer()

        def try_it() -> None:
            try:
                write()
            except Exception as error:  # a checkpoint, which must have it, says so and ends
                if not self._unwritten:
                    say(f"{METRICS} cannot be written and is kept in memory ({error})")
                self._unwritten = True
            else:
                self._unwritten = False

        self._storage.put(lambda _: try_it())
        self._written = time.monotonic()


def _close(sink: Sink) -> None:
    sink.close()
