"""The formulas are held to engines that have taken a step, on one rank and on two."""

from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from conf.compose import compose_config
from conf.enums import EngineKind, OptimizerKind, Precision
from conf.training import EngineConfig, OptimizerConfig, TrainingConfig
from tests.helpers.engines import forget_engine
from tests.helpers.latents import CHANNELS, SIZE, SMALL_UNET, WIDTH
from tests.helpers.ranks import run_ranks
from training.averages import Averages
from training.engine.accelerator import most_gathered
from training.engine.build import build_engine
from training.engine.optimizers import build_optimizer, state_tensors
from training.engine.strategy import Engine, flat_partitions
from training.models.unet import UNet
from training.plan.state import Offload, moment_bytes, sent_bytes, state_of

KINDS = {
    1: (EngineKind.single, EngineKind.zero3),
    2: (EngineKind.ddp, EngineKind.zero1, EngineKind.zero2, EngineKind.zero3),
}


def small_unet() -> UNet:
    """A UNet with parameters that no number of ranks divides."""
    settings = ["data.url=x", "out=y", "train.samples=1", *SMALL_UNET]
    return UNet(compose_config("train", settings).unet, CHANNELS, WIDTH)


def storages(tensors: list[Tensor]) -> int:
    """Bytes of the memory that tensors lie in, each once."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


def measured(engine: Engine) -> dict[str, int]:
    """Bytes that a rank holds after a step."""
    parameters = list(engine.module.parameters())
    average = storages(Averages(engine, TrainingConfig(samples=1), None).own)
    moments = [s[k] for s in engine.optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    weights = [p.data for p in parameters if p.numel()]
    found = {"average": average, "moments": sum(moment.nbytes for moment in moments)}
    zero: Any = engine.model.optimizer if engine.zero_stage else None
    if engine.zero_stage:
        weights += flat_partitions(engine)
        (bucket,) = zero.ipg_buckets.values()
    if engine.zero_stage == 3:
        weights += [p.ds_tensor for p in parameters]
        found["gradients"] = zero.grad_partitions_flat_buffer.nbytes
        found["bucket"] = bucket.buffer.nbytes
    elif engine.zero_stage:
        zero.setup_buckets()
        (buffer,) = bucket.buffer
        found["bucket"] = buffer.nbytes
    return {**found, "weights": storages(weights)}


def engines_in_turn(kinds: tuple[EngineKind, ...]) -> dict[EngineKind, dict[str, int]]:
    """For `run_ranks`: what a rank holds of each engine."""
    found = {}
    with mock.patch.object(dist, "destroy_process_group"):
        for kind in kinds:
            forget_engine()
            config = EngineConfig(kind=kind, precision=Precision.fp32)
            engine = build_engine(config, OptimizerConfig(), small_unet(), 2, 1)
            given = (torch.randn(2, CHANNELS, SIZE, SIZE), torch.zeros(2), torch.randn(2, 3, WIDTH))
            gradients = 0

            def losses(batch: Any, engine: Engine = engine) -> dict[str, Tensor]:
                return {"loss": engine.model(*batch).square().mean((1, 2, 3))}

            if not engine.zero_stage:
                losses(given)["loss"].mean().backward()
                gradients = sum(p.grad.nbytes for p in engine.module.parameters())
            engine.update([given], losses, 1e-4)
            found[kind] = {"gradients": gradients, **measured(engine)}
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_engines_hold_what_the_formulas_say(ranks: int) -> None:
    sizes = [parameter.numel() for parameter in small_unet().parameters()]
    for rank, found in enumerate(run_ranks(engines_in_turn, ranks, KINDS[ranks])):
        for kind, held in found.items():
            state = state_of(kind, sizes, ranks)
            assert held["weights"] == state.weights, kind
            # The last ranks' runs of a parameter may be shorter.
            assert held["average"] == state.average or rank > 0, kind
            assert held["average"] <= state.average, kind
            assert held["moments"] == state.moments, kind
            if held["gradients"]:  # of ZeRO-1 and 2 they are gone after a step
                assert held["gradients"] == state.gradients, kind
            if kind in (EngineKind.zero1, EngineKind.zero2):
                assert held["bucket"] == state.buffers
            if kind is EngineKind.zero3:
                large = [size for size in sizes if size > sum(sizes) // 1000]
                gathered = 4 * min(sum(large), most_gathered(sum(sizes))) if ranks > 1 else 0
                assert held["bucket"] + gathered == state.buffers


def test_shares_shrink_and_the_rest_does_not() -> None:
    sizes = [512, 64, 2048, 8]
    whole = 4 * sum(sizes)
    one, many = (state_of(EngineKind.zero2, sizes, ranks) for ranks in (1, 4))
    assert (one.moments, many.moments) == (2 * whole, 2 * whole // 4)
    assert (one.gradients, many.gradients) == (whole, whole // 4)
    assert (one.weights, many.weights) == (2 * whole, whole + whole // 4)
    assert (one.average, many.average) == (whole, whole // 4)
    assert state_of(EngineKind.zero1, sizes, 4).gradients == whole
    assert state_of(EngineKind.single, sizes, 1).total == 5 * whole
    assert state_of(EngineKind.ddp, sizes, 4).total == 6 * whole


def test_what_is_offloaded_is_in_host_memory() -> None:
    sizes, share = [512, 64, 2048, 8], 4 * 2632 // 4
    plain = state_of(EngineKind.zero2, sizes, 4)
    moved = state_of(EngineKind.zero2, sizes, 4, Offload(optimizer=True))
    assert (moved.moments, moved.gradients, moved.host) == (0, 0, 5 * share)
    assert plain.weights - moved.weights == share
    everything = state_of(EngineKind.zero3, sizes, 4, Offload(optimizer=True, parameters=True))
    assert everything.total == everything.buffers
    assert everything.host == 6 * share


def test_a_step_sends_what_rings_send() -> None:
    of = {kind: sent_bytes(kind, 1000, 4, 3) for kind in EngineKind}
    ring = 4 * 1000 * 3 // 4
    assert of == {
        EngineKind.single: 0,
        EngineKind.ddp: 2 * ring,
        EngineKind.zero1: 3 * ring,
        EngineKind.zero2: 7 * ring,
        EngineKind.zero3: 9 * ring,
    }
    assert sent_bytes(EngineKind.zero2, 1000, 1, 3) == 0


def test_moments_in_8_bits_are_those_of_bitsandbytes() -> None:
    weights = [torch.nn.Parameter(torch.ones(size)) for size in (4095, 4096, 10_001)]
    optimizer = build_optimizer(OptimizerConfig(kind=OptimizerKind.adamw_8bit), weights)
    for parameter in weights:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = [tensor for one in weights for tensor in state_tensors(optimizer, one).values()]
    sizes = [parameter.numel() for parameter in weights]
    bytes_kept = sum(tensor.nbytes for tensor in kept)
    assert moment_bytes(sizes, OptimizerKind.adamw_8bit) == bytes_kept
    plain = state_of(EngineKind.single, sizes, 1, optimizer=OptimizerKind.adamw_8bit)
    assert plain.moments == bytes_kept < moment_bytes(sizes, OptimizerKind.adamw) / 2
