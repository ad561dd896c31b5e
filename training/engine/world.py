"""Which rank this process is among how many, as the launcher's environment says it."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among the ranks.

    Args:
        rank: From 0; rank 0 writes what is written once.
        size: Number of ranks.
    """

    rank: int
    size: int

    @property
    def main(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0


def current_world() -> World:
    """The world that torchrun's environment describes; one rank without it."""
    return World(rank=int(os.environ.get("RANK", "0")), size=int(os.environ.get("WORLD_SIZE", "1")))
