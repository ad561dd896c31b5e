"""One micro-batch on trial before the first step: what would fail then, or be wrong in silence.

Leaves no trace: gradients are taken and dropped, random state and buffers come back, and neither
the engine's wrapper nor the optimizer is touched. Compiled code is not used, for it would be made
for the plain model and not for the wrapped one.
"""

import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from conf.errors import RunError
from data.corpus import Corpus
from training.diagnose import sample_names
from training.ema import pointed
from training.engine.shares import size_of, whole_weights, without_gathering
from training.engine.strategy import Engine
from training.headroom import (
    GPU,
    HOST,
    NOTHING,
    REMEDIES,
    ToCome,
    check_memory,
    memory_left,
    peak_where_computed,
    room,
)
from training.random import noted_draws
from training.sizes import BYTES
from training.task import Losses


@dataclass(frozen=True, slots=True)
class Tried:
    """What one rank found.

    Args:
        places: Of its samples.
        draws: Digests of the noise that it drew, a row each.
        shape: Of the loss.
        not_finite: What is not, as a message says it; empty if all is.
        out_of_memory: Whether its device had too little.
    """

    places: tuple[int, ...]
    draws: tuple[bytes, ...] = ()
    shape: tuple[int, ...] = ()
    not_finite: str = ""
    out_of_memory: bool = False


def dry_batch(
    engine: Engine,
    losses: Losses,
    data: Corpus,
    batch: Any,
    may_skip: bool,
    free_memory_share: float,
    to_come: ToCome = NOTHING,
) -> str:
    """Try a rank's first micro-batch, forward and backward, together with all other ranks.

    Args:
        engine: The engine.
        losses: Per-sample values of a micro-batch.
        data: What the micro-batch was read from, for names of samples.
        batch: The micro-batch.
        may_skip: Whether a batch that is not finite may be passed over.
        free_memory_share: Of its memory that each rank has to have left.
        to_come: What this rank takes later.

    Returns:
        What was found, in a line.

    Raises:
        RunError: Names the rank, and what is wrong there.
    """
    began = time.perf_counter()
    parameters = sum(map(size_of, engine.module.parameters()))
    # Whole weights and their gradients, which no rank holds in training.
    lacking = engine.weights_in_shares and room(engine) < 2 * BYTES * parameters
    tried = []
    if not engine.any(lacking):
        tried = engine.gather(_try(engine, losses, data, batch))
    if not tried or (engine.zero_stage >= 2 and any(one.out_of_memory for one in tried)):
        return "the first micro-batch is not tried: there is no room for whole gradients"
    check_tried(tried, may_skip)
    # Measured when every rank holds what it takes; shares take less than what was held here.
    memory = engine.gather(memory_left(engine, to_come))
    peaks = engine.gather(peak_where_computed(engine))
    on_gpu = engine.device.type == "cuda"
    if engine.zero_stage < 2:
        check_memory(memory, free_memory_share)
    elif on_gpu:  # where the trial took nothing of the host
        hosts = [{kind: one for kind, one in kinds.items() if kind == HOST} for kinds in memory]
        check_memory(hosts, free_memory_share)
    if on_gpu:
        torch.cuda.empty_cache()
    left = min((one.share for kinds in memory for one in kinds.values()), default=None)
    rest = "" if left is None else f", {left:.0%} of memory left"
    seconds = time.perf_counter() - began
    return (
        f"the first micro-batch is tried, in {seconds:.1f} s: peak {max(peaks) / 1e9:.2f} GB{rest}"
    )


def check_tried(ranks: Sequence[Tried], may_skip: bool) -> None:
    """Refuse what no training should begin with.

    Args:
        ranks: What each rank has found.
        may_skip: Whether a batch that is not finite may be passed over.

    Raises:
        RunError: Names the rank, or two of which one does the other's work.
    """
    for rank, one in enumerate(ranks):
        where, count = f"rank {rank}, first micro-batch", len(one.places)
        if one.out_of_memory:
            raise RunError(f"{where}: its device has too little memory; {REMEDIES[GPU]}")
        if one.shape != (count,):
            raise RunError(f"{where}: its loss is of shape {one.shape}, for {count} samples")
        if one.not_finite and not may_skip:
            raise RunError(
                f"{where}: {one.not_finite} is not finite; look at that, set "
                "engine.precision=fp32, or pass over such batches with guards.nonfinite=skip"
            )
    for what, found in (
        ("are given the same samples", _shared([one.places for one in ranks])),
        ("draw the same noise", _shared([one.draws for one in ranks])),
    ):
        if found:
            raise RunError(
                f"ranks {found[0]} and {found[1]} {what}: one does the other's work; look at what "
                "their launcher gives them as RANK and WORLD_SIZE"
            )


def _shared(ranks: Sequence[Sequence[Hashable]]) -> tuple[int, int] | None:
    """The first two ranks that have something in common."""
    owners: dict[Hashable, int] = {}
    for rank, items in enumerate(ranks):
        for item in items:
            if owners.setdefault(item, rank) != rank:
                return owners[item], rank
    return None


def _try(engine: Engine, losses: Losses, data: Corpus, batch: Any) -> Tried:
    module = engine.module
    tried = Tried(tuple(batch.places.tolist()))
    weights = [*whole_weights(engine)]
    devices = [engine.device] if engine.device.type == "cuda" else []
    with (
        without_gathering(engine),
        pointed(module, weights),
        _same_buffers(module),
        torch.random.fork_rng(devices),
        torch.compiler.set_stance("force_eager"),
        noted_draws() as draws,
    ):
        named = {name: one for name, one in module.named_parameters() if one.requires_grad}
        try:
            loss = losses(module, batch, engine.device)["loss"]
            found = torch.autograd.grad(loss.mean(), [*named.values()], allow_unused=True)
        except torch.OutOfMemoryError:
            return replace(tried, out_of_memory=True)
        bad = [
            f"the gradient of {name}"
            for name, gradient in zip(named, found, strict=True)
            if gradient is not None and not bool(gradient.isfinite().all())
        ]
    finite = loss.detach().isfinite().flatten().tolist()
    if loss.shape == (len(tried.places),) and not all(finite):
        (name,) = sample_names(data, [tried.places[finite.index(False)]])
        bad.insert(0, f"the loss of {name}")
    return replace(
        tried, draws=tuple(draws), shape=tuple(loss.shape), not_finite=bad[0] if bad else ""
    )


@contextmanager
def _same_buffers(module: nn.Module) -> Iterator[None]:
    """Buffers are afterwards what they were before."""
    before = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, values in zip(module.buffers(), before, strict=True):
            buffer.copy_(values)
