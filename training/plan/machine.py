"""The machines that a plan is for: by name, or the one that it is made on."""

import os
import statistics
from dataclasses import dataclass

import torch

from conf.enums import Precision
from conf.errors import UserError
from conf.plan import PlanConfig
from data.storage import open_prefix
from training.perf import PEAKS, Peak, device_peak, memory_of, peak_of
from training.tracking.files import read_metrics


@dataclass(frozen=True, slots=True)
class Machine:
    """What each rank computes on.

    Args:
        name: Of the device.
        kind: `cuda` or `cpu`, as autocast tells them apart.
        memory: Bytes of a rank.
        peak: FLOPs per second of a rank.
        mfu: Share of it that the model's FLOPs have, in (0, 1].
        mfu_source: Where that is from.
    """

    name: str
    kind: str
    memory: int
    peak: Peak
    mfu: float
    mfu_source: str


def machine_of(plan: PlanConfig, local_ranks: int, precision: Precision) -> Machine:
    """The machine that is planned for.

    Args:
        plan: Names it, or does not.
        local_ranks: Ranks of a node, which share its memory where they compute on the CPU.
        precision: Of the forward pass.

    Raises:
        UserError: The GPU is not in the table, or the run that is like it has no MFU.
    """
    mfu, source = (plan.mfu, "assumed") if plan.like is None else measured_mfu(plan.like)
    if plan.gpu is not None:
        peak, memory = peak_of(plan.gpu, precision), memory_of(plan.gpu)
        if peak is None or memory is None:
            raise UserError(
                f"plan.gpu={plan.gpu}", "is not known", f"choose one of {', '.join(PEAKS)}"
            )
        return Machine(plan.gpu, "cuda", memory, peak, mfu, source)
    if torch.cuda.is_available():
        device = torch.device("cuda", 0)
        found = torch.cuda.get_device_properties(device)
        peak = device_peak(device, precision)
        return Machine(found.name, "cuda", found.total_memory, peak, mfu, source)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // local_ranks
    one = device_peak(torch.device("cpu"), precision)
    # Ranks share the cores, all of which the matrix product had.
    peak = Peak(one.flops / local_ranks, one.source)
    return Machine("this machine's CPU", "cpu", memory, peak, mfu, source)


def measured_mfu(url: str) -> tuple[float, str]:
    """The median MFU of a run's lines of metrics, and where it is from.

    Raises:
        UserError: There are none.
    """
    lines = read_metrics(open_prefix(url, "plan.like"))
    values = [line["mfu"] for line in lines if "mfu" in line]
    if not values:
        raise UserError(
            f"plan.like={url}", "has no metrics with an MFU", "give the `out` of an `ldm train` run"
        )
    return statistics.median(values), f"median of {url}"
