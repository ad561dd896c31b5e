"""Which GPUs each of several trials at a time gets, by the environment of its process."""

import itertools
import os
import re

VISIBLE = "CUDA_VISIBLE_DEVICES"
NAME = re.compile(r"\d+|(GPU|MIG)-.+", re.ASCII)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA names them: a scheduler may give it some."""
    if VISIBLE in os.environ:
        names = (name.strip() for name in os.environ[VISIBLE].split(","))
        return [*itertools.takewhile(NAME.fullmatch, names)]  # CUDA looks no further than that
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def gpus_of_place(gpus: list[str], place: int, each: int) -> list[str]:
    """The GPUs of one of the trials that run at a time.

    Args:
        gpus: All that there are.
        place: Of the trial among those that run, from 0.
        each: Ranks of a trial, each of which wants one.

    Returns:
        As many as there are ranks, or all; trials take turns where there are too few for all.
    """
    first = place * each
    return [gpus[(first + i) % len(gpus)] for i in range(min(each, len(gpus)))]
