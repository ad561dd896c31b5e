"""What a place of the order draws of its sample: one view of the image, one of its captions."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from data.order import hashes_of

DRAWS = 0x6D617773  # sets the hashes of draws apart from those of permutations


class Draw(IntEnum):
    """What a place draws one of."""

    view = 0
    caption = 1


@dataclass(frozen=True, slots=True)
class Choices:
    """Members of which every place reads one.

    Args:
        names: Their extensions; a sample may lack all but the first.
        draw: What they are.
    """

    names: tuple[str, ...]
    draw: Draw


def drawn(
    seed: int, places: NDArray[np.int64], draw: Draw, counts: NDArray[np.int64] | int
) -> NDArray[np.int64]:
    """A number below its count for each place, by seed, place and draw alone."""
    chance = hashes_of(places, seed, DRAWS, int(draw))
    return (chance % np.asarray(counts).astype(np.uint64)).astype(np.int64)
