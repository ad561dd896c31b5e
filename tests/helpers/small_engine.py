"""A network of 130 parameters in an engine, to be stepped and saved."""

import torch
from torch import nn

from conf.enums import EngineKind, Precision
from conf.training import EngineConfig, OptimizerConfig
from tests.helpers.engines import forget_engine
from training.engine.build import build_engine
from training.engine.strategy import Engine


def small_engine(seed: int, kind: str = "single", channels_last: bool | None = None) -> Engine:
    """A fresh engine whose weights follow from the seed."""
    forget_engine()
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5))
    config = OptimizerConfig(lr=0.1)
    engine = EngineConfig(
        kind=EngineKind(kind), precision=Precision.fp32, channels_last=channels_last
    )
    return build_engine(engine, config, network, 4, 1)


def step(engine: Engine) -> None:
    """One step on random images."""
    batch = torch.randn(4, 2, 4, 4)
    engine.update([batch], lambda images: {"loss": engine.model(images).square().mean(1)}, lr=0.1)


def average(engine: Engine) -> list[torch.Tensor]:
    """Something that is not the weights, in their place; of engines that keep whole weights."""
    return [parameter.detach() * 0.5 for parameter in engine.module.parameters()]
