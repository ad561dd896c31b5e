"""Which of several processes this one is, where they share work and never talk."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from conf.errors import UserError

T = TypeVar("T")

# Who starts processes, by the names that it gives rank and world size in the environment.
LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
# A job's machine among its machines, where each starts ranks that know nothing of the others'.
MACHINE, MACHINES = "LDM_MACHINE", "LDM_MACHINES"
LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID")


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process of several.

    Args:
        rank: Its number, from 0.
        world_size: How many there are.
    """

    rank: int
    world_size: int

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's items: every `world_size`th."""
        return items[self.rank :: self.world_size]


def this_rank(rank: int | None = None, world_size: int | None = None) -> Ranks:
    """Who this process is: as told, or as a launcher's environment says, or the only one.

    Raises:
        UserError: The environment holds no rank.
    """
    if rank is not None and world_size is not None:
        return Ranks(rank, world_size)
    for one, other in LAUNCHERS:
        if one in os.environ and other in os.environ:
            here = _from_environment(one, other)
            if MACHINE not in os.environ:
                return here
            machine = _from_environment(MACHINE, MACHINES)  # all have as many ranks
            first = machine.rank * here.world_size
            return Ranks(first + here.rank, machine.world_size * here.world_size)
    return Ranks(0, 1)


def local_rank() -> int:
    """The number of this process on its machine, as a launcher's environment says; else 0."""
    for name in LOCAL_RANKS:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def _from_environment(one: str, other: str) -> Ranks:
    try:
        ranks = Ranks(int(os.environ[one]), int(os.environ[other]))
    except ValueError:
        ranks = Ranks(0, 0)
    if not 0 <= ranks.rank < ranks.world_size:
        raise UserError(
            f"{one}={os.environ[one]} {other}={os.environ[other]}",
            "in the environment are no rank and number of ranks",
            "unset them, or start every process with torchrun or srun",
        )
    return ranks
