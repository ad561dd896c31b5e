"""One interface over single process, data parallel and DeepSpeed ZeRO, all through Accelerate.

The model comes in plain and is wrapped here. Weights and optimizer stay in float32; bf16 is
autocast around the forward pass, so that a checkpoint means the same whatever the engine.
"""

import gc
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from conf.enums import EngineKind, Precision
from conf.errors import UserError
from conf.training import OptimizerConfig
from training.device import autocast_forward, keep_freed_memory
from training.engine.accelerator import NOTHING, Offload, build_accelerator, leave_process_group
from training.engine.world import World, current_world

ZERO_STAGES = {EngineKind.zero1: 1, EngineKind.zero2: 2, EngineKind.zero3: 3}


class Engine:
    """Runs steps of a wrapped model on this rank; `build_engine` makes it.

    Attributes:
        world: This rank among all.
        device: Where the model is.
        model: The wrapped model, to be called for training.
        module: The plain model, for its weights.
        adamw: The plain optimizer, for its learning rate and state; Accelerate's wrapper steps it.
        zero_stage: DeepSpeed's stage, or 0.
    """

    def __init__(
        self,
        accelerator: Any,
        model: nn.Module,
        module: nn.Module,
        optimizer: Any,
        adamw: torch.optim.AdamW,
        clip_norm: float,
        zero_stage: int,
    ) -> None:
        self._accelerator = accelerator
        self._clip_norm = clip_norm
        self.world = World(accelerator.process_index, accelerator.num_processes)
        self.device: torch.device = accelerator.device
        self.model = model
        self.module = module
        self._optimizer = optimizer
        self.adamw = adamw
        self.zero_stage = zero_stage

    @property
    def weights_in_shares(self) -> bool:
        """Whether this rank keeps a share of the weights, and the module's parameters are empty."""
        return self.zero_stage == 3

    def update(
        self, micro_batches: Iterable[Any], losses: Callable[[Any], Mapping[str, Tensor]], lr: float
    ) -> dict[str, float]:
        """One optimizer step over this rank's micro-batches.

        Args:
            micro_batches: As many as the engine was built to accumulate.
            losses: Per-sample values (B,) of a micro-batch; `loss` among them is minimised.
            lr: Learning rate of this step.

        Returns:
            The means over the global batch, `grad_norm` before clipping, and `applied`: 0 if that
            norm, or a loss, is not finite. Then weights and optimizer are what they were, on every
            rank: the norm is that of the gradients of all ranks.
        """
        for group in self.adamw.param_groups:
            group["lr"] = lr
        sums: dict[str, Tensor] = {}
        count = 0
        for batch in micro_batches:
            with self._accelerator.accumulate(self.model):
                values = losses(batch)
                self._accelerator.backward(nan_unless_finite(values["loss"].mean()))
                if self._accelerator.sync_gradients:
                    norm = self._clip()
                # DeepSpeed has stepped within the backward pass, or has not for the same reason.
                if not self._accelerator.sync_gradients or math.isfinite(norm):
                    self._optimizer.step()
                self._optimizer.zero_grad()
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value.detach().mean()
            count += 1
        means = self.mean(torch.stack([sums[name].float() for name in sums]) / count)
        applied = float(math.isfinite(norm))
        named = dict(zip(sums, means.tolist(), strict=True))
        return {**named, "grad_norm": norm, "applied": applied}

    def _clip(self) -> float:
        """Clip the gradients; DeepSpeed has done so itself and only reports the norm."""
        limit = self._clip_norm or float("inf")
        return float(self._accelerator.clip_grad_norm_(self.module.parameters(), limit))

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the ranks."""
        return self.sum(values) / self.world.size

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the ranks."""
        if self.world.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.world.size == 1:
            return [value]
        values: list[Any] = [None] * self.world.size
        dist.all_gather_object(values, value)
        return values

    def close(self) -> None:
        """Leave the process group; the engine can do nothing afterwards.

        Whoever drops a process group last waits for its threads. The wrapped model would do so with
        Python locked, and a thread that has yet to give a tensor back waits for Python: a hang. So
        the model goes first, and the group after it, by Python's own reference, which unlocks.
        """
        self._accelerator.free_memory()
        del self.model, self._optimizer
        gc.collect()
        if dist.is_initialized():
            leave_process_group(self.zero_stage)


def nan_unless_finite(loss: Tensor) -> Tensor:
    """A loss whose gradient is nan throughout if it is not finite itself, and unchanged if it is.

    So the gradients' norm, which is that of all ranks, tells of every loss too.
    """
    value = loss.detach()
    return loss * torch.where(value.isfinite(), 1.0, torch.nan)


def build_engine(
    kind: EngineKind,
    precision: Precision,
    optimizer_config: OptimizerConfig,
    model: nn.Module,
    micro_batch_size: int,
    accumulation_steps: int,
    offload: Offload = NOTHING,
) -> Engine:
    """Wrap a model for training.

    Args:
        kind: Which engine.
        precision: bf16 autocasts the model's forward pass.
        optimizer_config: AdamW's settings.
        model: The plain model, its float32 weights already loaded and the same on every rank.
        micro_batch_size: Samples of a rank's micro-batch.
        accumulation_steps: Micro-batches of an optimizer step.
        offload: What lies in host memory; only under ZeRO.

    Raises:
        UserError: The launcher started more ranks than the engine can use.
    """
    world = current_world()
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
    zero_stage = ZERO_STAGES.get(kind, 0)
    accelerator = build_accelerator(
        zero_stage,
        optimizer_config.clip_norm,
        micro_batch_size,
        accumulation_steps,
        offload,
        sum(parameter.numel() for parameter in model.parameters()),
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    autocast_forward(model, precision, accelerator.device)
    model = model.to(accelerator.device)
    if not zero_stage:  # DeepSpeed views weights as bytes, which needs them contiguous
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=optimizer_config.lr,
        betas=(optimizer_config.betas[0], optimizer_config.betas[1]),
        eps=optimizer_config.eps,
        weight_decay=optimizer_config.weight_decay,
        fused=True,
    )
    wrapped, prepared = accelerator.prepare(model, optimizer)
    engine = Engine(
        accelerator, wrapped, model, prepared, optimizer, optimizer_config.clip_norm, zero_stage
    )
    _check(engine, kind, world, accelerator, offload)
    return engine


def _check(
    engine: Engine, kind: EngineKind, world: World, accelerator: Any, offload: Offload
) -> None:
    """Make sure that what runs is what was asked for: libraries have fallen back in silence."""
    from accelerate.utils import DistributedType

    assert engine.world == world, f"asked for {world}, got {engine.world}"
    assert (accelerator.distributed_type == DistributedType.DEEPSPEED) == bool(engine.zero_stage)
    if world.size > 1 and not engine.zero_stage:
        assert isinstance(engine.model, nn.parallel.DistributedDataParallel), type(engine.model)
    if engine.zero_stage:
        assert engine.model.zero_optimization_stage() == engine.zero_stage
        own = sum(part.numel() for part in flat_partitions(engine))
        parameters = list(engine.module.parameters())
        every = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)
        # Each partition is padded to an even length; of ZeRO-3, each parameter's.
        padding = len(parameters) * world.size if engine.weights_in_shares else 1024 * world.size
        assert own <= every / world.size + padding, f"optimizer state is not partitioned: {kind}"
        if engine.weights_in_shares:
            assert not any(  # small ones stay on every rank
                parameter.numel() for parameter in parameters if not parameter.ds_persist
            ), "weights are not partitioned"
        there = "cpu" if offload.optimizer else engine.device.type
        assert all(part.device.type == there for part in flat_partitions(engine)), there


def flat_partitions(engine: Engine) -> list[Tensor]:
    """This rank's flat pieces of the weights under ZeRO; the optimizer's state is keyed by them."""
    zero = engine.model.optimizer
    if engine.weights_in_shares:
        return list(zero.fp32_partitioned_groups_flat)
    return list(zero.single_partition_of_fp32_groups)
