"""Which part of the weights, and of their averages, a rank keeps.

Under ZeRO a rank averages its share of every parameter: a run of the flattened parameter, of one
length on all ranks, so the last ones' may be shorter or empty. Under ZeRO-3 it keeps no more of the
weights either. Functions that talk to the other ranks say so.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from training.engine.strategy import Engine
from training.engine.world import World

Span = tuple[str, int, int]  # a parameter, the first element and the number of elements


def kept_weights(engine: Engine) -> list[Tensor]:
    """The weights that this rank averages, in the order of the parameters; updates show in them.

    Whole parameters, or under ZeRO this rank's shares (N,). ZeRO-3 fills its last ones up, with
    numbers that mean nothing.
    """
    parameters = list(engine.module.parameters())
    if engine.weights_in_shares:
        return [parameter.ds_tensor for parameter in parameters]
    if not engine.zero_stage:
        return [parameter.detach() for parameter in parameters]
    shares = (share_of(engine, parameter) for parameter in parameters)
    return [
        parameter.detach().view(-1)[start : start + length]
        for parameter, (start, length) in zip(parameters, shares, strict=True)
    ]


def kept_of(engine: Engine, read: Callable[[list[Span]], Iterable[Tensor]]) -> list[Tensor]:
    """What this rank keeps of an average, in the order of the parameters.

    Args:
        engine: The engine.
        read: Gives the spans that are wanted, flat, in their order.
    """
    kept = [torch.zeros_like(weights) for weights in kept_weights(engine)]
    spans = [
        (name, *(share_of(engine, parameter) if engine.zero_stage else (0, parameter.numel())))
        for name, parameter in engine.module.named_parameters()
    ]
    for own, values in zip(kept, read(spans), strict=True):
        if engine.zero_stage:
            own[: len(values)] = values  # ZeRO-3 fills the last ranks' shares up
        else:
            own.copy_(values.view(own.shape))
    return kept


def share_of(engine: Engine, parameter: Tensor) -> tuple[int, int]:
    """First element and number of elements of this rank's share of a parameter under ZeRO."""
    every = size_of(parameter)
    size = _share_size(engine, every)
    start = min(engine.world.rank * size, every)
    return start, min(size, every - start)


def run_of_rows(world: World, tensor: Tensor) -> tuple[int, Tensor]:
    """This rank's part of what all ranks hold, and its first element within the flattened tensor.

    Equal runs of whole rows, the last ones shorter or empty: those are a view in channels_last too.
    """
    rows = tensor if tensor.ndim else tensor[None]
    size = -(-len(rows) // world.size)
    first = min(world.rank * size, len(rows))
    return first * rows[:1].numel(), rows[first : first + size]


def whole_shapes(engine: Engine) -> dict[str, list[int]]:
    """The shapes of the whole parameters, by their names."""
    return {name: [*_shape(parameter)] for name, parameter in engine.module.named_parameters()}


def whole_weights(engine: Engine) -> Iterator[Tensor]:
    """The weights, one whole parameter at a time; under ZeRO-3 every rank takes part to the end."""
    if engine.weights_in_shares:
        return whole(engine, kept_weights(engine))
    return (parameter.detach() for parameter in engine.module.parameters())


def whole(engine: Engine, kept: Sequence[Tensor]) -> Iterator[Tensor]:
    """Whole tensors, one at a time, from what the ranks keep; every rank takes part to the end.

    Args:
        engine: The engine.
        kept: An average of what `kept_weights` gives.
    """
    for parameter, own in zip(engine.module.parameters(), kept, strict=True):
        if not engine.zero_stage:
            yield own
            continue
        every = size_of(parameter)
        size = _share_size(engine, every)
        filled = own.new_zeros(size, device=engine.device)  # offloaded shares are in host memory
        filled[: own.numel()] = own
        parts = [torch.empty_like(filled) for _ in range(engine.world.size)]
        dist.all_gather(parts, filled)
        yield torch.cat(parts)[:every].view(_shape(parameter))


def _share_size(engine: Engine, numel: int) -> int:
    return -(-numel // engine.world.size)


def size_of(parameter: Tensor) -> int:
    """Elements of a parameter; what ZeRO-3 has emptied knows how many it had."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _shape(parameter: Tensor) -> torch.Size:
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


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
