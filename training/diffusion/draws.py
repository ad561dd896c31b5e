"""From uniform draws to times in [0, 1)."""

import torch
from torch import Tensor

from conf.diffusion import DiffusionConfig
from conf.enums import TimestepDraw

BELOW_ONE = 1 - 2.0**-53


def drawn_times(config: DiffusionConfig, uniform: Tensor) -> Tensor:
    """Times t in [0, 1), (B,), float64, of uniform draws in [0, 1).

    Source: logit_normal: Esser et al. 2024, Sec. 3.1, by its inverse distribution function, so that
    draws that are spread evenly stay so.
    """
    if config.timestep_draw is TimestepDraw.uniform:
        return uniform
    inner = uniform.clamp(2.0**-53, BELOW_ONE)
    t = (config.logit_mean + config.logit_std * torch.special.ndtri(inner)).sigmoid()
    return t.clamp(max=BELOW_ONE)
