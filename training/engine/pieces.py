"""What a rank writes into a checkpoint, in pieces that do not depend on engine or number of ranks.

A piece is a run of a flattened tensor with its `Fragment`. Over all ranks every element comes once,
and nothing is gathered: a rank gives what it keeps, and of what all ranks hold its part.
"""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from training.engine.fragments import Fragment, collect_fragments
from training.engine.shares import kept_weights, run_of_rows, share_of
from training.engine.strategy import Engine

MODEL, EMA, OPTIMIZER = "model", "ema", "optimizer"
VALUES = "values"  # the state of weights and averages, as optimizers have `exp_avg`

Piece = tuple[Fragment, Tensor]


def pieces_of(engine: Engine, averages: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Piece]]:
    """This rank's pieces of a run's whole state, by the kind of file that they go into.

    Args:
        engine: The engine.
        averages: By their kinds, what this rank keeps of them, as `kept_weights` has it.

    Returns:
        Views of what training uses, of any memory layout; their logical order is what counts.
    """
    return {
        MODEL: list(_pieces(engine, _weights(engine), engine.weights_in_shares)),
        **average_pieces(engine, averages),
        OPTIMIZER: list(collect_fragments(engine)),
    }


def average_pieces(
    engine: Engine, averages: Mapping[str, Sequence[Tensor]]
) -> dict[str, list[Piece]]:
    """This rank's pieces of averages alone; arguments and result as of `pieces_of`."""
    return {
        kind: list(_pieces(engine, kept, bool(engine.zero_stage)))
        for kind, kept in averages.items()
    }


def _weights(engine: Engine) -> list[Tensor]:
    """The weights that this rank holds: shares under ZeRO-3, else whole parameters."""
    if engine.weights_in_shares:
        return kept_weights(engine)
    return [parameter.detach() for parameter in engine.module.parameters()]


def _pieces(engine: Engine, tensors: Sequence[Tensor], in_shares: bool) -> Iterator[Piece]:
    named = engine.module.named_parameters()
    for (name, parameter), tensor in zip(named, tensors, strict=True):
        if in_shares:
            start, length = share_of(engine, parameter)
            piece = tensor.view(-1)[:length]  # ZeRO-3 fills the last ranks' shares up
        else:
            start, piece = run_of_rows(engine.world, tensor)
        if piece.numel():
            yield Fragment(name, VALUES, start), piece
