"""State in pieces that do not depend on the engine or the number of ranks.

A fragment is a run of one parameter's flattened state: (parameter, kind of state, start). Each rank
gives the fragments that it holds; any rank of any engine can put its own together from them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.engine.shares import run_of_rows, share_of
from training.engine.strategy import Engine, flat_partitions

STATES = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Fragment:
    """Where a piece of state belongs.

    Args:
        parameter: The parameter's name.
        state: One of `STATES`, or `values` of weights and averages.
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


def collect_fragments(engine: Engine) -> Iterator[tuple[Fragment, Tensor]]:
    """This rank's part of the optimizer state, as views; over all ranks every element once."""
    for place, state in _views(engine):
        start, run = place.start, state
        if not engine.zero_stage:  # all ranks hold the same
            start, run = run_of_rows(engine.world, state)
        if run.numel():
            yield replace(place, start=start), run


def restore_fragments(engine: Engine, updates: int, read: ReadState) -> None:
    """Put the optimizer's state back, before the first update of this process.

    Args:
        engine: A fresh engine.
        updates: Optimizer steps that the state has seen.
        read: Where the elements come from.
    """
    for weights in flat_partitions(engine) if engine.zero_stage else engine.module.parameters():
        engine.adamw.state[weights] = _empty_state(weights, updates)
    for place, state in _views(engine):
        values = read(place.parameter, place.state, place.start, state.numel())
        state.copy_(values.reshape(state.shape))


def _views(engine: Engine) -> Iterator[tuple[Fragment, Tensor]]:
    """Every piece of state that this rank keeps, as a view of what the optimizer uses."""
    for name, parameter in engine.module.named_parameters():
        for kind in STATES:
            if not engine.zero_stage:
                yield Fragment(name, kind, 0), engine.adamw.state[parameter][kind]
            elif engine.weights_in_shares:
                zero = engine.model.optimizer
                group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
                start, length = share_of(engine, parameter)
                if length:
                    state = engine.adamw.state[flat_partitions(engine)[group]][kind]
                    yield Fragment(name, kind, start), state.narrow(0, offset, length)
            elif (mapping := parameter._hp_mapping) is not None:
                partition = flat_partitions(engine)[mapping.param_group_index]
                place = mapping.hp_fragment_address
                state = engine.adamw.state[partition][kind].narrow(0, place.start, place.numel)
                yield Fragment(name, kind, mapping.lp_fragment_address.start), state


def _empty_state(like: Tensor, updates: int) -> dict[str, Tensor]:
    step = torch.tensor(float(updates), device=like.device)
    return {"step": step, **{kind: torch.zeros_like(like) for kind in STATES}}
