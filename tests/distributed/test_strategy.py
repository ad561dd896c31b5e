"""What runs is the engine that was asked for, in the precision that was asked for."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn

from conf.enums import EngineKind, Precision
from conf.errors import UserError
from conf.training import EngineConfig, OptimizerConfig, TrainingConfig
from tests.helpers.engines import forget_engine
from tests.helpers.ranks import run_ranks
from training.averages import Averages
from training.engine.build import build_engine
from training.engine.shares import kept_weights, whole_weights
from training.engine.strategy import Engine, flat_partitions

KINDS = ("ddp", "zero1", "zero2", "zero3")
CASES = [(kind, precision) for kind in KINDS for precision in ("fp32", "bf16")]


class Network(nn.Module):
    """A linear map that notes the number formats of what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 33)
        self.met: set[torch.dtype] = set()
        self.linear.register_forward_hook(lambda module, given, made: self.met.add(made.dtype))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.linear(values)
        return made


def build(kind: str, precision: str, model: nn.Module) -> Engine:
    optimizer = OptimizerConfig(lr=0.5, clip_norm=0.0)
    return build_engine(
        EngineConfig(kind=EngineKind(kind), precision=Precision(precision)), optimizer, model, 2, 1
    )


def describe_engines() -> dict[tuple[str, str], dict[str, Any]]:
    """For `run_ranks`: facts of every engine after one step."""
    facts = {}
    with mock.patch.object(dist, "destroy_process_group"):
        for kind, precision in CASES:
            forget_engine()
            facts[kind, precision] = describe_engine(kind, precision)
    return facts


def collectives(work: Callable[[], object]) -> list[str]:
    """What ranks say to each other meanwhile, whoever asks for it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        work()
    return [event.name for event in seen.events() if event.name.startswith("c10d::")]


def describe_engine(kind: str, precision: str) -> dict[str, Any]:
    torch.manual_seed(0)
    network = Network()
    engine = build(kind, precision, network)
    weights = kept_weights(engine)
    before = weights[0].clone()
    batch = torch.randn(2, 64)

    def losses(values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": engine.model(values).float().mean(1)}

    engine.update([batch], losses, lr=0.25)
    step = float((weights[0] - before).abs().mean())
    in_step = collectives(lambda: engine.update([batch], losses, lr=0.25))
    averages = Averages(engine, TrainingConfig(samples=8, ema_lengths=[0.05]), None)
    in_averages = collectives(lambda: averages.update(2, 2))
    partitions = flat_partitions(engine) if engine.zero_stage else []
    states = [engine.optimizer.state[key] for key in engine.optimizer.state]
    facts = {
        "wrapper": type(engine.model).__name__,
        "stage": engine.model.zero_optimization_stage() if engine.zero_stage else 0,
        "ranks": dist.get_world_size(),
        "backend": dist.get_backend(),
        "partition": sum(part.numel() for part in partitions),
        "moments": sum(state["exp_avg"].numel() for state in states),
        "met": network.met,
        "weights": {parameter.dtype for parameter in network.parameters()},
        # Adam's first step is as long as the learning rate, whatever the gradient.
        "step": step,
        "collectives": (in_step, in_averages),
        "fused": [group["fused"] for group in engine.optimizer.param_groups],
        "kept": sum(own.numel() for own in weights),
        "there": network.linear.weight.numel(),
    }
    engine.close()
    return facts


def scaled_steps() -> dict[str, list[Any]]:
    """For `run_ranks`: of every engine, the norm and the weights after steps of other factors."""
    found = {}
    with mock.patch.object(dist, "destroy_process_group"):
        for kind in KINDS:
            found[kind] = []
            for factors in ((1.0, 1.0), (2.0**14, 2.0**6), (2.0**14, 2.0**130, 2.0**6)):
                forget_engine()
                found[kind].append(take_scaled_steps(kind, factors))
    return found


def take_scaled_steps(kind: str, factors: tuple[float, ...]) -> dict[str, Any]:
    torch.manual_seed(0)
    engine = build_engine(
        EngineConfig(kind=EngineKind(kind), precision=Precision.fp32),
        OptimizerConfig(clip_norm=0.05),
        Network(),
        2,
        2,
    )
    torch.manual_seed(engine.world.rank)
    batches = list(torch.randn(2, 2, 64))
    steps = [
        engine.update(batches, lambda x: {"loss": engine.model(x).square().mean(1)}, 0.1, factor)
        for factor in factors
    ]
    kept = [weights.tolist() for weights in whole_weights(engine)]
    engine.close()
    applied = [step for step in steps if step["applied"]]
    return {"kept": kept, "applied": applied, "refused": len(steps) - len(applied)}


@pytest.fixture(scope="module")
def scaled() -> list[dict[str, list[Any]]]:
    """What two ranks find when losses are multiplied."""
    return run_ranks(scaled_steps, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_of_the_loss_changes_no_bit(scaled: list[Any], kind: str) -> None:
    for rank in scaled:
        plain, multiplied, overflowing = rank[kind]
        assert plain["refused"] == multiplied["refused"] == 0
        assert multiplied == plain
        assert len({step["grad_norm"] for step in plain["applied"]}) == 2
        assert overflowing == {**plain, "refused": 1}


@pytest.fixture(scope="module")
def facts() -> list[dict[tuple[str, str], dict[str, Any]]]:
    """Of two ranks."""
    return run_ranks(describe_engines, 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("kind", "stage"), [("zero1", 1), ("zero2", 2), ("zero3", 3)])
def test_deepspeed_runs_and_halves_the_optimizer_state(
    facts: list[Any], kind: str, stage: int, precision: str
) -> None:
    whole = 64 * 33 + 33
    for rank in facts:
        fact = rank[kind, precision]
        assert fact["wrapper"] == "DeepSpeedEngine"
        assert fact["stage"] == stage
        assert (fact["ranks"], fact["backend"]) == (2, "gloo")
        assert whole / 2 <= fact["partition"] <= whole / 2 + 8
        assert fact["moments"] == fact["partition"]


def test_ddp_runs_and_keeps_the_whole_state_on_every_rank(facts: list[Any]) -> None:
    for rank in facts:
        fact = rank["ddp", "fp32"]
        assert fact["wrapper"] == "DistributedDataParallel"
        assert fact["moments"] == 64 * 33 + 33


def test_zero3_halves_the_weights_too(facts: list[Any]) -> None:
    for rank in facts:
        fact = rank["zero3", "fp32"]
        assert fact["kept"] == fact["partition"]
        assert fact["there"] == 0
        assert rank["zero2", "fp32"]["there"] == 64 * 33


@pytest.mark.parametrize("kind", ["zero1", "zero2"])
def test_ranks_average_halves_of_the_weights(facts: list[Any], kind: str) -> None:
    kept = [rank[kind, "fp32"]["kept"] for rank in facts]
    assert sum(kept) == 64 * 33 + 33
    assert max(kept) - min(kept) <= 2  # one for each parameter
    assert facts[0]["ddp", "fp32"]["kept"] == 64 * 33 + 33


@pytest.mark.parametrize("kind", KINDS)
def test_averaging_asks_nothing_of_other_ranks(facts: list[Any], kind: str) -> None:
    """And so gathers no weights, in shares or not."""
    for rank in facts:
        in_step, in_averages = rank[kind, "fp32"]["collectives"]
        assert in_step
        assert in_averages == []


@pytest.mark.parametrize("kind", KINDS)
def test_adamw_is_the_fused_one(facts: list[Any], kind: str) -> None:
    assert [rank[kind, "fp32"]["fused"] for rank in facts] == [[True]] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_reaches_the_layers_and_leaves_the_weights(facts: list[Any], kind: str) -> None:
    for rank in facts:
        assert rank[kind, "bf16"]["met"] == {torch.bfloat16}
        assert rank[kind, "fp32"]["met"] == {torch.float32}
        assert rank[kind, "bf16"]["weights"] == {torch.float32}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_learning_rate_of_a_step_is_the_one_given(facts: list[Any], case: Any) -> None:
    for rank in facts:
        assert rank[case]["step"] == pytest.approx(0.25, rel=0.01)


def test_single_refuses_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="engine=single: was started on 2 ranks"):
        build("single", "fp32", Network())
