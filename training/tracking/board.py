"""The record as TensorBoard reads it, by tensorboardX: events beside the run.

An events file is written on this machine. That of a remote run is uploaded whole, now and then, for
object stores cannot append.
"""

import importlib.util
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.errors import UserError
from data.storage import Prefix
from training.tracking.sink import Histogram, Saved

FOLDER = "tensorboard"
SECONDS_BETWEEN_UPLOADS = 60.0


def require_board() -> None:
    """Refuse to go on without the package.

    Raises:
        UserError: It is not installed.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError(
            "tracking.tensorboard=true",
            "needs tensorboardX, which is not installed",
            "pip install 'latent-foundry[tensorboard]'",
        )


class Board:
    """A sink of TensorBoard events.

    Args:
        out: The run.
        samples_seen: Where the run goes on: TensorBoard shows nothing later of older files.
    """

    def __init__(self, out: Prefix, samples_seen: int) -> None:
        from tensorboardX import SummaryWriter

        self._out = out
        self._temporary = None if out.local else tempfile.TemporaryDirectory()
        self._folder = (out.local or Path(self._temporary.name)) / FOLDER  # type: ignore[union-attr]
        later = samples_seen + 1
        self._writer: Any = SummaryWriter(str(self._folder), purge_step=later, flush_secs=15)
        self._uploaded = time.monotonic()

    def log(self, seen: int, values: Mapping[str, float]) -> None:
        """Scalars of the same names."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, seen)
        if self._temporary and time.monotonic() - self._uploaded > SECONDS_BETWEEN_UPLOADS:
            self._upload()

    def show(self, seen: int, name: str, picture: NDArray[np.uint8]) -> None:
        """An image."""
        self._writer.add_image(name, picture, seen, dataformats="HWC")

    def spread(self, seen: int, histograms: Mapping[str, Histogram]) -> None:
        """Histograms; what is not in a histogram, such as the sum, is that of the middles."""
        for name, one in histograms.items():
            counts, edges = np.array(one.counts), np.array(one.edges)
            middles = (edges[:-1] + edges[1:]) / 2
            self._writer.add_histogram_raw(
                name,
                min=edges[0],
                max=edges[-1],
                num=counts.sum(),
                sum=(counts * middles).sum(),
                sum_squares=(counts * middles**2).sum(),
                bucket_limits=edges[1:],
                bucket_counts=counts,
                global_step=seen,
            )

    def alert(self, title: str, text: str) -> None:
        """A text."""
        self._writer.add_text("alerts", f"{title}: {text}")

    def saved(self, checkpoint: Saved) -> None:
        """A text."""
        self._writer.add_text("checkpoints", checkpoint.url, checkpoint.commit["samples_seen"])

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
        if self._temporary:
            self._upload()
            self._temporary.cleanup()

    def _upload(self) -> None:
        self._writer.flush()
        for file in sorted(self._folder.iterdir()):
            self._out.write(f"{FOLDER}/{file.name}", file.read_bytes())
        self._uploaded = time.monotonic()
