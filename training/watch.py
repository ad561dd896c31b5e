"""What a training measures and shows on its way, with the averaged weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from training.engine.strategy import Engine

# Asked by a look between any two parts of its work, which so tells that it gets on. False: it is to
# end at once, for the run is told to stop.
GoOn = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look at a training has found.

    Args:
        values: For metrics.jsonl, by name; the same on every rank.
        pictures: (H, W, 3), uint8, by the folder of the run that they are kept in; on rank 0.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Watch:
    """A look that every rank takes once in a while, and at the end.

    Args:
        every_samples: Samples of training between two looks.
        look: Called with the averaged weights in the engine's module, in evaluation mode, and with
            what says between its parts whether to go on. Changes neither weights nor the state of
            any random generator. None, on every rank, if one of them was not to go on.
        meaning: What tells the validation loss that it measures from others'; None if it measures
            none.
    """

    every_samples: int
    look: Callable[[Engine, GoOn], Seen | None]
    meaning: str | None = None
