"""Optimizer state in pieces that do not depend on the engine or the number of ranks.

A fragment is a run of one parameter's flattened state: (parameter, kind of state, start). Each rank
gives the fragments that it holds; any rank of any engine can put its own together from them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from training.engine.strategy import Engine, flat_partitions

STATES = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Fragment:
    """Where a piece of optimizer state belongs.

    Args:
        parameter: The parameter's name.
        state: One of `STATES`.
        start: First element within the flattened parameter.
    """

    parameter: str
    state: str
    start: int

    def __str__(self) -> str:
        return f"{self.parameter}|{self.state}|{self.start}"

    @classmethod
    def parse(cls, text: str) -> "Fragment":
        """Read what `str` wrote."""
        parameter, state, start = text.split("|")
        return cls(parameter, state, int(start))


# Gives the elements `start` to `start + length` of a parameter's flattened state.
ReadState = Callable[[str, str, int, int], Tensor]


def collect_fragments(engine: Engine) -> dict[str, Tensor]:
    """This rank's share of the optimizer state; over all ranks every element once."""
    if engine.zero_stage:
        return {str(place): tensor for place, tensor in _zero_fragments(engine)}
    if not engine.world.main:  # without ZeRO all ranks hold the same
        return {}
    state = engine.optimizer.state
    return {
        str(Fragment(name, kind, 0)): state[parameter][kind].flatten()
        for name, parameter in engine.module.named_parameters()
        for kind in STATES
    }


def restore_fragments(engine: Engine, updates: int, read: ReadState) -> None:
    """Put the optimizer's state back, before the first update of this process.

    Args:
        engine: A fresh engine.
        updates: Optimizer steps that the state has seen.
        read: Where the elements come from.
    """
    optimizer = engine.optimizer.optimizer
    while not isinstance(optimizer, torch.optim.AdamW):  # Accelerate and DeepSpeed each wrap it
        optimizer = optimizer.optimizer
    if engine.zero_stage:
        for partition in flat_partitions(engine):
            optimizer.state[partition] = _empty_state(partition, updates)
        for name, parameter in engine.module.named_parameters():
            mapping = parameter._hp_mapping
            if mapping is None:
                continue
            partition = flat_partitions(engine)[mapping.param_group_index]
            piece, place = mapping.lp_fragment_address, mapping.hp_fragment_address
            for kind in STATES:
                target = optimizer.state[partition][kind].narrow(0, place.start, place.numel)
                target.copy_(read(name, kind, piece.start, piece.numel))
        return
    for name, parameter in engine.module.named_parameters():
        state = _empty_state(parameter, updates)
        for kind in STATES:
            values = read(name, kind, 0, parameter.numel())
            state[kind].copy_(values.reshape(parameter.shape))
        optimizer.state[parameter] = state


def _zero_fragments(engine: Engine) -> Iterator[tuple[Fragment, Tensor]]:
    for name, parameter in engine.module.named_parameters():
        mapping = parameter._hp_mapping
        if mapping is not None:
            for kind in STATES:
                place = Fragment(name, kind, mapping.lp_fragment_address.start)
                yield place, mapping.get_optim_state_fragment(kind)


def _empty_state(like: Tensor, updates: int) -> dict[str, Tensor]:
    step = torch.tensor(float(updates), device=like.device)
    return {"step": step, **{kind: torch.zeros_like(like) for kind in STATES}}
