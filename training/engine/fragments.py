"""State in pieces that do not depend on the engine or the number of ranks.

A fragment is a run of one parameter's flattened state: (parameter, kind of state, start). Each rank
gives the fragments that it holds; any rank of any engine can put its own together from them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from training.engine.optimizers import start_state, state_tensors
from training.engine.shares import run_of_rows, share_of
from training.engine.strategy import Engine, flat_partitions


@dataclass(frozen=True, slots=True)
class Fragment:
    """Where a piece of state belongs.

    Args:
        parameter: The parameter's name.
        state: Its name in the optimizer, or `values` of weights and averages.
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


# Gives runs of flattened state, (length,) each, in the order of where they start and their lengths.
ReadState = Callable[[Sequence[tuple[Fragment, int]]], Iterable[Tensor]]


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
    weights = flat_partitions(engine) if engine.zero_stage else engine.module.parameters()
    start_state(engine.optimizer, weights, updates)
    kept = [*_views(engine)]
    wanted = [(place, state.numel()) for place, state in kept]
    for (_, state), values in zip(kept, read(wanted), strict=True):
        state.copy_(values.reshape(state.shape))


def _views(engine: Engine) -> Iterator[tuple[Fragment, Tensor]]:
    """Every piece of state that this rank keeps, as a view of what the optimizer uses."""
    for name, parameter in engine.module.named_parameters():
        if not engine.zero_stage:
            for kind, state in state_tensors(engine.optimizer, parameter).items():
                yield Fragment(name, kind, 0), state
            continue
        place = _place_under_zero(engine, parameter)
        if place.length:
            partition = flat_partitions(engine)[place.partition]
            for kind, state in state_tensors(engine.optimizer, partition).items():
                piece = state.narrow(0, place.offset, place.length)
                yield Fragment(name, kind, place.start), piece


@dataclass(frozen=True, slots=True)
class _Place:
    """Where this rank keeps the state of its run of a parameter.

    Args:
        start: First element of the run, within the flattened parameter.
        length: Of the run; 0 if this rank has none.
        partition: Which of the flat partitions.
        offset: First element within that.
    """

    start: int = 0
    length: int = 0
    partition: int = 0
    offset: int = 0


def _place_under_zero(engine: Engine, parameter: Any) -> _Place:
    if engine.weights_in_shares:
        zero = engine.model.optimizer
        group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
        return _Place(*share_of(engine, parameter), group, offset)
    mapping = parameter._hp_mapping
    if mapping is None:
        return _Place()
    kept = mapping.hp_fragment_address
    start = mapping.lp_fragment_address.start
    return _Place(start, kept.numel, mapping.param_group_index, kept.start)
