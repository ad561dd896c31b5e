"""Bytes that a rank keeps between steps, by engine: formulas that tests hold to the engines.

Owns what each engine keeps whole and what in shares; refuses to know a network: it sees the sizes
of parameters. All numbers are float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from conf.enums import EngineKind, OptimizerKind
from training.engine.accelerator import bucket_size, largest_whole, most_gathered
from training.sizes import BYTES, moment_bytes

ALIGNED = 2  # elements of which each rank's part is a multiple under ZeRO-1 and 2


@dataclass(frozen=True, slots=True)
class Offload:
    """What ZeRO keeps in host memory.

    Args:
        optimizer: The optimizer's state and the float32 shares that it updates.
        parameters: The shares of the weights, with ZeRO-3.
    """

    optimizer: bool = False
    parameters: bool = False


NOTHING = Offload()


@dataclass(frozen=True, slots=True)
class State:
    """Bytes of one rank.

    Args:
        weights: Of the weights, and of the share of them that ZeRO's optimizer updates.
        average: Of their average.
        gradients: Of the gradients.
        moments: Of Adam's two moments.
        buffers: Of what an exchange between ranks needs: buckets, and weights that ZeRO-3 sends
            for, at most.
        host: In host memory, where something is offloaded to it; no part of the others.
    """

    weights: int
    average: int
    gradients: int
    moments: int
    buffers: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return self.weights + self.average + self.gradients + self.moments + self.buffers


def state_of(
    kind: EngineKind,
    sizes: Sequence[int],
    ranks: int,
    offload: Offload = NOTHING,
    optimizer: OptimizerKind = OptimizerKind.adamw,
    averages: int = 1,
) -> State:
    """What a rank of an engine keeps.

    Args:
        kind: The engine.
        sizes: Elements of every parameter, in their order.
        ranks: How many.
        offload: What lies in host memory; only under ZeRO.
        optimizer: Under ZeRO, adamw.
        averages: How many are kept of the weights.

    Source: Rajbhandari et al. 2020 (arXiv:1910.02054), section 5, in float32.
    """
    state = _state(kind, sizes, ranks, offload, optimizer)
    more = averages - 1
    if offload.parameters:
        share = BYTES * sum(-(-size // ranks) for size in sizes)
        return replace(state, host=state.host + more * share)
    return replace(state, average=averages * state.average)


def _state(
    kind: EngineKind, sizes: Sequence[int], ranks: int, offload: Offload, optimizer: OptimizerKind
) -> State:
    if kind is EngineKind.zero3:
        return _zero3(sizes, ranks, offload)
    if kind in (EngineKind.zero1, EngineKind.zero2):
        return _zero12(kind, sizes, ranks, offload)
    whole = BYTES * sum(sizes)
    # DistributedDataParallel copies gradients into buckets of its own.
    buckets = whole if kind is EngineKind.ddp and ranks > 1 else 0
    return State(whole, whole, whole, moment_bytes(sizes, optimizer), buckets)


def _zero12(kind: EngineKind, sizes: Sequence[int], ranks: int, offload: Offload) -> State:
    whole = BYTES * sum(sizes)
    share = BYTES * -(-sum(sizes) // (ALIGNED * ranks)) * ALIGNED
    flat = share * ranks
    bucket = BYTES * bucket_size(sum(sizes))
    average = BYTES * sum(-(-size // ranks) for size in sizes)
    gradients = whole if kind is EngineKind.zero1 else share
    if not offload.optimizer:
        return State(flat + share, average, gradients, 2 * share, bucket)
    kept = whole if kind is EngineKind.zero1 else 0
    # The share, its gradients, the moments, and what comes back to the device.
    return State(flat, average, kept, 0, bucket, host=5 * share)


def _zero3(sizes: Sequence[int], ranks: int, offload: Offload) -> State:
    share = BYTES * sum(-(-size // ranks) for size in sizes)
    # On one rank, weights that are sent for are the share itself, if it is on the device.
    copied = sizes if ranks > 1 or offload.parameters else []
    small = [size for size in copied if size <= largest_whole(sum(sizes))]
    gathered = min(sum(copied) - sum(small), most_gathered(sum(sizes)))
    buffers = BYTES * (bucket_size(sum(sizes)) + gathered)
    # The shares of the weights and their average, and what the optimizer works on.
    plain, average = (0, 0) if offload.parameters else (share, share)
    updated, gradients, moments = (0, 0, 0) if offload.optimizer else (share, share, 2 * share)
    weights = plain + updated + BYTES * sum(small)
    host = 2 * share * offload.parameters + 4 * share * offload.optimizer
    return State(weights, average, gradients, moments, buffers, host)


def sent_bytes(kind: EngineKind, parameters: int, ranks: int, accumulation: int) -> int:
    """Bytes that a rank sends in a step, with the ring algorithms of NCCL and gloo.

    A ring's all-gather and reduce-scatter each send (n - 1) / n of the whole from every rank, an
    all-reduce is both. DeepSpeed's ZeRO-2 reduces after every micro-batch, and its reduction for
    several ranks at once is an all-reduce; ZeRO-3 sends for weights at most twice in each.

    Args:
        kind: The engine.
        parameters: Elements of the model.
        ranks: How many.
        accumulation: Micro-batches of a step.

    Source: Patarasuk and Yuan 2009 (the ring); the times are DeepSpeed 0.19's.
    """
    times = {
        EngineKind.single: 0,
        EngineKind.ddp: 2,
        EngineKind.zero1: 2 + 1,  # and an all-gather of the updated weights
        EngineKind.zero2: 2 * accumulation + 1,
        EngineKind.zero3: (2 + 1) * accumulation,
    }[kind]
    return times * BYTES * parameters * (ranks - 1) // ranks
