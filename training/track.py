"""The record of a run: metrics.jsonl, and the same in Weights & Biases."""

import contextlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.enums import TrackingKind
from conf.errors import UserError
from conf.groups import TrackingConfig
from data.image import encode_png
from data.storage import Prefix

METRICS = "metrics.jsonl"
WANDB_ID = "wandb_id"
WANDB_SERVICE = "WANDB_SERVICE"  # where a process that W&B runs in leaves its service's address
SECONDS_BETWEEN_WRITES = 15.0


def read_metrics(out: Prefix) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none if there is no such file."""
    try:
        lines = out.read(METRICS).decode().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


class Tracker:
    """Keeps the metrics of a run; made on every rank, writes on one.

    Args:
        out: The run.
        config: Whether and how W&B is used.
        settings: The run's resolved configuration.
        samples_seen: Where the run goes on: later lines, of a process that died, are dropped.
        main: Whether this rank writes.
    """

    def __init__(
        self,
        out: Prefix,
        config: TrackingConfig,
        settings: dict[str, Any],
        samples_seen: int,
        main: bool,
    ) -> None:
        self._out = out
        self._main = main
        self._lines = (
            [x for x in read_metrics(out) if x["samples_seen"] <= samples_seen] if main else []
        )
        self._written = time.monotonic()
        self._wandb = start_wandb(out, config, settings) if main else None

    def log(self, samples_seen: int, values: dict[str, float]) -> None:
        """Record the values at a place of the run."""
        if not self._main:
            return
        line = {"samples_seen": samples_seen, **values}
        self._lines.append(line)
        if self._wandb:
            self._wandb.log(line)
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.write()

    def show(self, samples_seen: int, folder: str, picture: NDArray[np.uint8]) -> None:
        """Keep a picture (H, W, 3), uint8, as FOLDER/SAMPLES.png of the run, and log it."""
        if not self._main:
            return
        self._out.write(f"{folder}/{samples_seen:09d}.png", encode_png(picture))
        if self._wandb:
            image = wandb_image(picture, f"after {samples_seen:,} samples")
            self._wandb.log({"samples_seen": samples_seen, folder: image})

    def write(self) -> None:
        """Bring metrics.jsonl up to date."""
        self.writer()()

    def writer(self) -> Callable[[], None]:
        """What brings it up to now, whenever and in whichever thread it is called."""
        lines = tuple(self._lines)

        def write() -> None:
            if self._main:
                self._out.write(METRICS, "".join(json.dumps(x) + "\n" for x in lines).encode())
                self._written = time.monotonic()

        return write

    def close(self) -> None:
        """Write what is left and end the W&B run."""
        self.write()
        if self._wandb:
            self._wandb.finish()


def start_wandb(
    out: Prefix, config: TrackingConfig, settings: dict[str, Any], folder: Path | None = None
) -> Any:
    """A W&B run that a resumed run goes on in.

    Args:
        out: The run, or a part of it that has a W&B run of its own.
        config: Whether and how W&B is used.
        settings: The resolved configuration.
        folder: Where W&B keeps its files; by default the run's folder, or the temporary one for a
            remote run.

    Returns:
        wandb's run, or None if tracking is off.
    """
    if config.kind is TrackingKind.off:
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    # A service inherited from a parent outlives a killed run and refuses to take it up again.
    os.environ.pop(WANDB_SERVICE, None)
    import wandb

    if config.kind is TrackingKind.online and not wandb.api.api_key:
        raise UserError(
            "tracking.kind=online",
            "needs a W&B key, and none is set",
            "set WANDB_API_KEY, or choose tracking.kind=offline",
        )
    folder = folder or out.local or Path(tempfile.gettempdir()) / "latent-foundry"
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=config.project,
        name=out.url.rstrip("/").rsplit("/", 1)[-1],
        id=_run_id(out),
        group=config.group,
        tags=config.tags,
        resume="allow",
        mode=config.kind.value,
        dir=str(folder),
        config=settings,
        settings=wandb.Settings(console="off"),
    )
    run.define_metric("samples_seen")
    run.define_metric("*", step_metric="samples_seen")
    return run


def _run_id(out: Prefix) -> str:
    """An id that lies with the run, so that it is the run's own wherever the run is moved."""
    with contextlib.suppress(FileExistsError):
        out.create(WANDB_ID, secrets.token_hex(6).encode())
    return out.read(WANDB_ID).decode()


def wandb_image(image: NDArray[np.uint8], caption: str) -> Any:
    """An image (H, W, 3) as W&B logs it."""
    import wandb

    return wandb.Image(image, caption=caption)
