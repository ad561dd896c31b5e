"""Trying a micro-batch finds what is wrong and leaves nothing behind."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conf.enums import Precision
from conf.errors import RunError
from conf.training import EngineConfig, OptimizerConfig
from tests.helpers.engines import forget_engine
from training.dry import Tried, check_tried, dry_batch
from training.engine.build import build_engine
from training.random import Purpose, normal, noted_draws

GOOD = Tried((0, 1), (b"a", b"b"), (2,))


def test_what_is_in_order_passes() -> None:
    check_tried([GOOD, Tried((2, 3), (b"c", b"d"), (2,))], may_skip=False)


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (Tried((2, 3), (b"c",), ()), r"rank 1.*of shape \(\), for 2 samples"),
        (Tried((2, 3), (b"c",), (2, 4)), r"rank 1.*of shape \(2, 4\), for 2 samples"),
        (Tried((2, 3), (b"c",), (2,), "the gradient of a"), "rank 1.*gradient of a is not finite"),
        (Tried((2, 3), out_of_memory=True), "rank 1.*too little memory"),
        (Tried((1, 2), (b"c",), (2,)), "ranks 0 and 1 are given the same samples"),
        (Tried((2, 3), (b"c", b"a"), (2,)), "ranks 0 and 1 draw the same noise"),
    ],
)
def test_what_is_not_is_named(bad: Tried, line: str) -> None:
    with pytest.raises(RunError, match=line):
        check_tried([GOOD, bad], may_skip=False)


def test_a_batch_that_may_be_skipped_is_left_to_the_step() -> None:
    check_tried([GOOD, Tried((2, 3), (b"c",), (2,), "the loss of x")], may_skip=True)


def test_draws_are_noted_within_the_block_only() -> None:
    with noted_draws() as one:
        normal(0, [1, 2], Purpose.noise, (3,))
    with noted_draws() as other:
        normal(0, [2, 5], Purpose.noise, (3,))
    normal(0, [7], Purpose.noise, (3,))
    assert len(one) == len(other) == 2
    assert one[1] == other[0] and len({*one, *other}) == 3


def test_no_trace_is_left() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    forget_engine()
    engine = build_engine(EngineConfig(precision=Precision.fp32), OptimizerConfig(), model, 6, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = torch.randn(6, 4)
    seen = []

    def losses(module: nn.Module, batch: Any, device: torch.device) -> Mapping[str, Tensor]:
        seen.append(module(inputs))
        return {"loss": seen[-1].square().flatten()}

    batch = SimpleNamespace(places=torch.arange(6).numpy())
    state = torch.get_rng_state()
    for _ in range(2):
        found = dry_batch(engine, losses, None, batch, False, 0.0)  # type: ignore[arg-type]
    engine.close()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(seen[0], seen[1])  # dropout is drawn from a state that comes back
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "the first micro-batch is tried, in" in found
