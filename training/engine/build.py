"""Wraps a plain model for training on the engine that was asked for, and makes sure of it."""

import os
from typing import Any

import torch
from torch import nn

from conf.enums import EngineKind, OptimizerKind
from conf.errors import UserError
from conf.training import EngineConfig, OptimizerConfig
from training.device import (
    autocast_forward,
    keep_freed_memory,
    lay_out_plainly,
    together_on,
)
from training.engine.accelerator import ZERO_STAGES, build_accelerator
from training.engine.optimizers import build_optimizer
from training.engine.shares import size_of
from training.engine.strategy import Engine, flat_partitions
from training.engine.world import World, current_world


def build_engine(
    config: EngineConfig,
    optimizer_config: OptimizerConfig,
    model: nn.Module,
    micro_batch_size: int,
    accumulation_steps: int,
) -> Engine:
    """Wrap a model for training.

    Args:
        config: Which engine, and how it computes.
        optimizer_config: The optimizer's settings.
        model: The plain model, its float32 weights already loaded and the same on every rank.
        micro_batch_size: Samples of a rank's micro-batch.
        accumulation_steps: Micro-batches of an optimizer step.

    Raises:
        UserError: The launcher started more ranks than the engine can use, or a library is missing.
    """
    world = current_world()
    _check_ranks(config.kind, world)
    accelerator = build_accelerator(
        config,
        optimizer_config.clip_norm,
        micro_batch_size,
        accumulation_steps,
        sum(parameter.numel() for parameter in model.parameters()),
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    autocast_forward(model, config.precision, accelerator.device)
    model = model.to(accelerator.device)
    zero_stage = ZERO_STAGES.get(config.kind, 0)
    if not together_on(accelerator.device.type, config.channels_last):
        lay_out_plainly(model)
    # DeepSpeed views weights as bytes, bitsandbytes walks over them: they have to be contiguous.
    elif not zero_stage and optimizer_config.kind is OptimizerKind.adamw:
        model = model.to(memory_format=torch.channels_last)
    if config.compile:
        model.compile()
    optimizer = build_optimizer(optimizer_config, model.parameters())
    wrapped, stepper = accelerator.prepare(model, optimizer)
    engine = Engine(
        accelerator, wrapped, model, stepper, optimizer, optimizer_config.clip_norm, zero_stage
    )
    _check(engine, config, world, accelerator)
    return engine


def _check_ranks(kind: EngineKind, world: World) -> None:
    if kind is EngineKind.single and world.size > 1:
        raise UserError(
            "engine=single", f"was started on {world.size} ranks", "choose ddp or zero2"
        )
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available() and local_ranks > torch.cuda.device_count():
        raise UserError(
            f"cluster.processes={local_ranks}",
            f"this machine has {torch.cuda.device_count()} GPUs",
            "give one rank a GPU at the most",
        )


def _check(engine: Engine, config: EngineConfig, world: World, accelerator: Any) -> None:
    """Make sure that what runs is what was asked for: libraries have fallen back in silence."""
    from accelerate.utils import DistributedType

    assert engine.world == world, f"asked for {world}, got {engine.world}"
    assert (accelerator.distributed_type == DistributedType.DEEPSPEED) == bool(engine.zero_stage)
    if world.size > 1 and not engine.zero_stage:
        assert isinstance(engine.model, nn.parallel.DistributedDataParallel), type(engine.model)
    if engine.zero_stage:
        _check_zero(engine, config)


def _check_zero(engine: Engine, config: EngineConfig) -> None:
    assert engine.model.zero_optimization_stage() == engine.zero_stage
    partitions, ranks = flat_partitions(engine), engine.world.size
    parameters: list[Any] = list(engine.module.parameters())
    own = sum(part.numel() for part in partitions)
    every = sum(map(size_of, parameters))
    # Each partition is padded to an even length; of ZeRO-3, each parameter's.
    padding = len(parameters) * ranks if engine.weights_in_shares else 1024 * ranks
    assert own <= every / ranks + padding, f"optimizer state is not partitioned: {config.kind}"
    if engine.weights_in_shares:
        assert not any(  # small ones stay on every rank
            parameter.numel() for parameter in parameters if not parameter.ds_persist
        ), "weights are not partitioned"
    there = "cpu" if config.offload_optimizer else engine.device.type
    assert all(part.device.type == there for part in partitions), there
