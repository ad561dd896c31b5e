"""The averages of the weights that a run keeps: its own, and those of which others are rebuilt."""

from functools import partial

from torch import Tensor

from conf.training import TrainingConfig
from training.ema import ema_weight, update_ema
from training.engine.checkpoint import Checkpoint
from training.engine.pieces import EMA
from training.engine.shares import kept_of, kept_weights
from training.engine.strategy import Engine
from training.posthoc import gamma_of, power_weight


def kind_of(length: float) -> str:
    """The kind of file that a power-function average of some length is kept in."""
    return f"power{length:g}"


class Averages:
    """What this rank averages, whole weights or its shares of them; see `kept_weights`.

    Args:
        engine: The engine.
        config: Which averages.
        checkpoint: Where they are taken from; None begins with the fresh weights.

    Attributes:
        kept: All averages by the kind of file that they go into, in the order of the parameters.
    """

    def __init__(
        self, engine: Engine, config: TrainingConfig, checkpoint: Checkpoint | None
    ) -> None:
        self._config = config
        self._gammas = {kind_of(length): gamma_of(length) for length in config.ema_lengths}
        self._weights = kept_weights(engine)
        self.kept = {
            kind: kept_of(engine, partial(checkpoint.values, kind))
            if checkpoint
            else [weights.clone() for weights in self._weights]
            for kind in (EMA, *self._gammas)
        }

    @property
    def own(self) -> list[Tensor]:
        """The run's own average, which it is validated and sampled with."""
        return self.kept[EMA]

    @property
    def of_lengths(self) -> dict[str, list[Tensor]]:
        """Those of which averages of other lengths are rebuilt."""
        return {kind: average for kind, average in self.kept.items() if kind in self._gammas}

    def update(self, samples_seen: int, batch_size: int) -> None:
        """Move all averages towards the weights after a step.

        Args:
            samples_seen: The step's samples included.
            batch_size: Of the step.
        """
        shares = {EMA: ema_weight(samples_seen, batch_size, self._config.ema_half_life)}
        for kind, gamma in self._gammas.items():
            shares[kind] = power_weight(samples_seen, batch_size, gamma)
        for kind, share in shares.items():
            update_ema(self.kept[kind], self._weights, share)
