"""Whether the memory of each rank lasts: what is there, and what training takes after its trial.

Owns which memory is looked at: a CPU's ranks have that of the host, a GPU's have two, their own and
the host's, where copies for checkpoints lie and what is offloaded.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from conf.enums import OptimizerKind
from conf.errors import RunError
from data.progress import peak_memory
from training.engine.shares import size_of
from training.engine.strategy import Engine
from training.memory import Memory, host_memory
from training.run import TrainingConfigs
from training.sizes import BYTES, moment_bytes

GPU, HOST = "GPU memory", "host memory"
REMEDIES = {
    GPU: "give a smaller micro_batch_size, engine.recompute=true, or another engine",
    HOST: "give the job more of it, or fewer ranks a machine; on a CPU also a smaller "
    "micro_batch_size, engine.recompute=true, or another engine",
}


@dataclass(frozen=True, slots=True)
class ToCome:
    """Bytes that a rank takes after its first batch.

    Args:
        on_device: Where it computes.
        in_host: In host memory besides.
    """

    on_device: int = 0
    in_host: int = 0


NOTHING = ToCome()


def to_come(engine: Engine, config: TrainingConfigs) -> ToCome:
    """What training takes besides what its first batch does.

    Args:
        engine: With the optimizer's state, if there is any.
        config: Of the training.
    """
    sizes = [size_of(parameter) for parameter in engine.module.parameters()]
    ranks, kind = engine.world.size, config.optimizer.kind
    # Adam's moments come at its first step, shared out under ZeRO.
    moments = 0 if engine.optimizer.state else moment_bytes(sizes, kind)
    moments //= ranks if engine.zero_stage else 1
    pinned = engine.device.type == "cuda"
    copies = copied_bytes(sizes, kind, len(config.train.ema_lengths), ranks, pinned)
    if config.engine.offload_optimizer:
        return ToCome(0, moments + copies)
    return ToCome(moments, copies)


def copied_bytes(
    sizes: Sequence[int], optimizer: OptimizerKind, lengths: int, ranks: int, pinned: bool
) -> int:
    """Bytes of host memory in which a rank keeps what it writes, a file of a checkpoint each.

    Args:
        sizes: Elements of each parameter.
        optimizer: Whose moments are kept.
        lengths: How many averages are kept besides the run's own, in checkpoints and for good.
        ranks: That share them out.
        pinned: Page-locked, which torch gives in powers of two.
    """
    whole = BYTES * sum(sizes)
    files = [whole // ranks] * (2 + 2 * lengths) + [moment_bytes(sizes, optimizer) // ranks]
    return sum(1 << (size - 1).bit_length() if pinned and size else size for size in files)


def memory_left(engine: Engine, taken: ToCome) -> dict[str, Memory]:
    """What this rank has left when all is there that training takes, as far as anybody can tell.

    The memory of the trial counts as taken: allocators keep it for the steps to come.
    """
    found: dict[str, Memory] = {}
    in_host = taken.in_host
    if engine.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(engine.device)
        found[GPU] = Memory(free - taken.on_device, total)
    else:
        in_host += taken.on_device
    if host := host_memory():
        found[HOST] = Memory(host.free - _ranks_here() * in_host, host.total)
    return found


def check_memory(ranks: Sequence[Mapping[str, Memory]], share: float) -> None:
    """Refuse ranks with hardly any memory left.

    Args:
        ranks: What each one has left, by kind; no such kind where nobody can tell.
        share: That has to be.

    Raises:
        RunError: Names the first rank with less.
    """
    for rank, kinds in enumerate(ranks):
        for kind, memory in kinds.items():
            if memory.share < share:
                raise RunError(
                    f"rank {rank} will have {memory.free / 1e9:.2f} GB of "
                    f"{memory.total / 1e9:.2f} GB of {kind} left in training, less than "
                    f"guards.free_memory_share={share:g} of it; {REMEDIES[kind]}"
                )


def room(engine: Engine) -> float:
    """Bytes that this rank can still take where it computes, as far as anybody can tell."""
    if engine.device.type == "cuda":
        return float(torch.cuda.mem_get_info(engine.device)[0])
    memory = host_memory()
    return float("inf") if memory is None else memory.free / _ranks_here()


def peak_where_computed(engine: Engine) -> int:
    """The most bytes that this rank has held where it computes."""
    if engine.device.type == "cuda":
        return torch.cuda.max_memory_allocated(engine.device)
    return peak_memory()


def memory_figures(engine: Engine) -> dict[str, float]:
    """The most bytes that all ranks have held together, of GPUs too where some are. Collective."""
    figures = {"peak_memory": engine.total(peak_memory())}
    if engine.device.type == "cuda":
        figures["peak_device_memory"] = engine.total(peak_where_computed(engine))
    return figures


def _ranks_here() -> int:
    """Ranks of this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
