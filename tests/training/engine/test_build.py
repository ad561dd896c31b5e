"""What an engine makes of a plain model and its settings."""

import sys

import pytest
import torch
from torch import nn

from conf.enums import OptimizerKind, Precision
from conf.errors import UserError
from conf.training import EngineConfig, OptimizerConfig
from tests.helpers.engines import forget_engine
from training.engine.build import build_engine
from training.engine.strategy import Engine


class Network(nn.Module):
    """Two convolutions that note how what they are given lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3))
        self.met: set[bool] = set()
        for layer in (self.layers[0], self.layers[2]):
            layer.register_forward_pre_hook(lambda _, given: self.met.add(is_plain(given[0])))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.layers(images)
        return made


def is_plain(images: torch.Tensor) -> bool:
    return images.is_contiguous()


def stepped(config: EngineConfig, optimizer: OptimizerConfig) -> tuple[Engine, dict[str, float]]:
    """A network after one step, and what the engine says of the step."""
    forget_engine()
    torch.manual_seed(0)
    engine = build_engine(config, optimizer, Network(), 2, 1)
    images = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    told = engine.update(
        [images], lambda x: {"loss": engine.model(x).square().mean((1, 2, 3))}, 0.1
    )
    return engine, told


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_memory_layout_is_as_told_and_changes_no_more_than_rounding(
    channels_last: bool,
) -> None:
    optimizer = OptimizerConfig(eps=1.0)
    engine, told = stepped(
        EngineConfig(precision=Precision.fp32, channels_last=channels_last), optimizer
    )
    assert engine.module.met == {not channels_last}
    assert engine.module.layers[2].weight.is_contiguous() == (not channels_last)
    other, wanted = stepped(EngineConfig(precision=Precision.fp32), optimizer)
    assert told == pytest.approx(wanted, rel=1e-5)
    for one, two in zip(engine.module.parameters(), other.module.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_compiled_code_takes_the_same_step() -> None:
    """Only a model that is called through its compiled form has graphs counted."""
    torch.compiler.reset()
    plain, wanted = stepped(EngineConfig(precision=Precision.fp32), OptimizerConfig(eps=1.0))
    with pytest.MonkeyPatch.context() as patch:
        graphs: list[int] = []
        compile_ = nn.Module.compile

        def eagerly(model: nn.Module) -> None:
            def backend(graph: torch.fx.GraphModule, _: object) -> object:
                graphs.append(len(graph.graph.nodes))
                return graph.forward

            compile_(model, backend=backend)  # inductor takes a minute of C++ on a CPU

        patch.setattr(nn.Module, "compile", eagerly)
        engine, told = stepped(
            EngineConfig(precision=Precision.fp32, compile=True), OptimizerConfig(eps=1.0)
        )
    assert graphs
    assert told == pytest.approx(wanted, rel=1e-6)
    assert engine.module.state_dict().keys() == plain.module.state_dict().keys()
    for one, two in zip(engine.module.parameters(), plain.module.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


def test_adamw_is_the_fused_one() -> None:
    engine, _ = stepped(EngineConfig(precision=Precision.fp32), OptimizerConfig())
    assert isinstance(engine.optimizer, torch.optim.AdamW)
    assert [group["fused"] for group in engine.optimizer.param_groups] == [True]


def test_8_bits_without_bitsandbytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match=r"optimizer.kind=adamw_8bit.*pip install") as caught:
        stepped(
            EngineConfig(precision=Precision.fp32), OptimizerConfig(kind=OptimizerKind.adamw_8bit)
        )
    assert caught.value.setting == "optimizer.kind=adamw_8bit"
