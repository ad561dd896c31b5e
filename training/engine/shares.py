"""Where an engine keeps the weights: whole on every rank, or under ZeRO-3 a share on each.

A share is a run of a flattened parameter. All ranks' are of one length, so the last ones' may be
filled up with numbers that mean nothing. Functions that talk to the other ranks say so.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from training.engine.strategy import Engine


def kept_weights(engine: Engine) -> list[Tensor]:
    """What this rank keeps of every parameter, in their order; updates show in it.

    Whole parameters, or this rank's shares (N,).
    """
    parameters = list(engine.module.parameters())
    if engine.weights_in_shares:
        return [parameter.ds_tensor for parameter in parameters]
    return [parameter.detach() for parameter in parameters]


def kept_of(engine: Engine, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """What this rank would keep of whole tensors, in the order of the parameters.

    Args:
        engine: The engine.
        tensors: One of each parameter's shape, by its name.
    """
    kept = [torch.zeros_like(weights) for weights in kept_weights(engine)]
    for (name, parameter), own in zip(engine.module.named_parameters(), kept, strict=True):
        if engine.weights_in_shares:
            start, length = share_of(parameter, engine.world.rank)
            own[:length] = tensors[name].flatten()[start : start + length]
        else:
            own.copy_(tensors[name])
    return kept


def share_of(parameter: Tensor, rank: int) -> tuple[int, int]:
    """First element and number of elements of a rank's share of a parameter under ZeRO-3.

    The share of a rank beyond the parameter's end is empty.
    """
    size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
    every = parameter.ds_numel  # type: ignore[attr-defined]
    start = min(rank * size, every)
    return start, min(size, every - start)


def whole(engine: Engine, kept: Sequence[Tensor]) -> Iterator[Tensor]:
    """Whole tensors, one at a time, from what the ranks keep; every rank takes part to the end.

    Args:
        engine: The engine.
        kept: As `kept_weights` gives it: the weights, or an average of them.
    """
    for parameter, own in zip(engine.module.parameters(), kept, strict=True):
        if not engine.weights_in_shares:
            yield own
            continue
        own = own.to(engine.device)  # offloaded shares are in host memory
        parts = [torch.empty_like(own) for _ in range(engine.world.size)]
        dist.all_gather(parts, own)
        yield torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)


@contextmanager
def without_gathering(engine: Engine) -> Iterator[None]:
    """The plain model without ZeRO-3's hooks, for the length of a block.

    They gather a layer's weights from all ranks when it is called, so every rank has to call it as
    often as the others. Whoever puts whole weights in its place needs none of that.
    """
    if not engine.weights_in_shares:
        yield
        return
    offload = engine.model.optimizer.parameter_offload
    for hook in (*offload.forward_hooks, *offload.backward_hooks):
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []
    # Reading a parameter gathers it too, unless it says that it is there.
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    parameters = list(engine.module.parameters())
    statuses = [parameter.ds_status for parameter in parameters]
    for parameter in parameters:
        parameter.ds_status = ZeroParamStatus.AVAILABLE
    try:
        yield
    finally:
        for parameter, status in zip(parameters, statuses, strict=True):
            parameter.ds_status = status
        offload._register_deepspeed_module(offload.module)
