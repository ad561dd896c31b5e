"""How well a training uses its devices: FLOPs of a step over the peak of what it runs on.

Owns the count of FLOPs and the table of peaks. Refuses to guess: where no data sheet is known, the
rate of a matrix product is measured, and said so.
"""

import copy
import re
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from conf.enums import Precision
from training.device import DTYPES
from training.task import Losses

META = torch.device("meta")
# A backward pass takes a product each for the gradients of inputs and of weights. What
# engine.recompute computes again is not counted: MFU is of the model's FLOPs, not the hardware's.
FORWARDS_A_STEP = 3
MEASURED_SECONDS, MEASURED_TRIES = 0.1, 8  # whichever lasts longer; the first try warms up
# TFLOP/s without sparsity, in 16 bits, and in 32 bits as convolutions run by default, which is TF32
# where there is such a unit; and GB of memory, the least that is sold by the name. The first name
# that is part of the device's counts.
# Source: NVIDIA's data sheets (of B200, HGX; of RTX, the architecture's white paper), AMD's.
PEAKS = {
    "B200": (2250.0, 1100.0, 180),
    "H200": (989.4, 494.7, 141),
    "H100 NVL": (835.0, 417.5, 94),
    "H100 PCIe": (756.0, 378.0, 80),
    "H100": (989.4, 494.7, 80),
    "A100": (312.0, 156.0, 40),
    "A6000": (154.8, 77.4, 48),
    "L40S": (362.0, 183.0, 48),
    "L4": (121.0, 60.0, 24),
    "A10": (125.0, 62.5, 24),
    "RTX 4090": (165.2, 82.6, 24),
    "RTX 3090": (71.0, 35.6, 24),
    "MI300X": (1307.4, 653.7, 192),
}


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that a device can do.

    Args:
        flops: Per second.
        source: Where the figure is from.
    """

    flops: float
    source: str

    def __str__(self) -> str:
        unit, size = ("TFLOP/s", 1e12) if self.flops >= 1e12 else ("GFLOP/s", 1e9)
        return f"{self.flops / size:,.0f} {unit} ({self.source})"


def peak_of(name: str, precision: Precision) -> Peak | None:
    """The data sheet's peak of a GPU by the name that its driver gives; None if it is not known."""
    known = _known(name)
    if known is None:
        return None
    half, single, _ = PEAKS[known]
    tera = single if precision is Precision.fp32 else half
    return Peak(tera * 1e12, f"data sheet of {known}")


def memory_of(name: str) -> int | None:
    """Bytes of a GPU's memory by its name, which may tell them (A100 80GB); None if not known."""
    known = _known(name)
    if known is None:
        return None
    said = re.search(r"\b(\d+) ?GB\b", name)
    return (int(said[1]) if said else PEAKS[known][2]) * 10**9


def _known(name: str) -> str | None:
    """The entry of the table that a name means."""
    # Whole words, so that an A1000 is no A100; drivers join words by spaces and hyphens.
    words = f" {name.replace('-', ' ')} "
    return next((known for known in PEAKS if f" {known} " in words), None)


def device_peak(device: torch.device, precision: Precision) -> Peak:
    """The peak of a device: its data sheet's, or measured in under a second."""
    if device.type == "cuda":
        known = peak_of(torch.cuda.get_device_name(device), precision)
        if known is not None:
            return known
    return Peak(measured_peak(device, DTYPES[precision]), "by a matrix product")


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of a square matrix product, the best of several tries."""
    side = 512 if device.type == "cpu" else 8192
    factor = torch.full((side, side), 0.5, device=device, dtype=dtype)
    best, tries, began = float("inf"), 0, time.perf_counter()
    while time.perf_counter() - began < MEASURED_SECONDS or tries < MEASURED_TRIES:
        tries += 1
        started = time.perf_counter()
        # Reading one number waits for a device that works on its own.
        (factor @ factor)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of a plain model that has shapes and no numbers: it takes no memory and no time."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device=META))
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device=META)
    return copy.deepcopy(model, memo)


class Counted(nn.Module):
    """A model that counts the FLOPs of its own forward passes, whatever else its caller computes.

    Attributes:
        flops: Of convolutions, matrix products and attention; a multiply-add is two.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.flops = 0

    def forward(self, *given: Any) -> Any:
        """What the model answers."""
        with FlopCounterMode(display=False) as counter:
            answer = self.model(*given)
        self.flops += counter.get_total_flops()
        return answer


@torch.no_grad()
def forward_flops(
    shapes: nn.Module,
    losses: Losses,
    batch: Any,
) -> int:
    """FLOPs of the model's forward pass for one micro-batch.

    Args:
        shapes: The model on the meta device, as `meta_copy` gives it.
        losses: Calls the model for a micro-batch.
        batch: The micro-batch; others may have other sizes, and captions of other lengths.
    """
    counted = Counted(shapes)
    losses(counted, batch, META)
    return counted.flops


def utilisation(flops_per_sample: float, samples_per_second: float, peak: float) -> float:
    """Model FLOPs utilisation in [0, 1]: what training steps need over what the devices can do.

    Args:
        flops_per_sample: Of a forward pass.
        samples_per_second: Over all ranks.
        peak: FLOPs per second of all ranks' devices together.

    Source: Chowdhery et al. 2022 (PaLM), appendix B.
    """
    return FORWARDS_A_STEP * flops_per_sample * samples_per_second / peak


class Interval:
    """Samples, waiting and time since the last line of metrics."""

    def __init__(self) -> None:
        self.samples, self.waited, self.since = 0, 0.0, time.perf_counter()

    def add(self, waited: float, samples: int) -> None:
        """Count the samples of a step, and the seconds waited for them."""
        self.samples += samples
        self.waited += waited

    def leave_out(self, seconds: float) -> None:
        """Do not count a time in which nothing was trained."""
        self.since += seconds

    def close(self) -> dict[str, float]:
        """The figures of this interval; the next one begins."""
        seconds = max(time.perf_counter() - self.since, 1e-9)
        figures = {
            "images_per_second": self.samples / seconds,
            "waiting_share": self.waited / seconds,
        }
        self.samples, self.waited, self.since = 0, 0.0, time.perf_counter()
        return figures


class Use:
    """How much of the devices' peak training uses.

    Args:
        losses: Calls the model for a micro-batch.
        shapes: The model without numbers.
        peak: FLOPs per second of all ranks' devices together.
    """

    def __init__(self, losses: Losses, shapes: nn.Module, peak: float) -> None:
        self._losses, self._shapes, self._peak = losses, shapes, peak
        self._flops: float | None = None

    def count(self, micro_batch: Any) -> None:
        """Count the FLOPs of a forward pass, by the first micro-batch that comes."""
        if self._flops is None:
            flops = forward_flops(self._shapes, self._losses, micro_batch)
            self._flops = flops / len(micro_batch.places)

    def of(self, images_per_second: float) -> float:
        """Model FLOPs utilisation at that speed, in [0, 1]."""
        assert self._flops is not None
        return utilisation(self._flops, images_per_second, self._peak)
