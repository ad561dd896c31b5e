"""One interface over single process, data parallel and DeepSpeed ZeRO, all through Accelerate.

Weights and optimizer stay in float32; bf16 and fp16 are
autocast around the forward pass, so that a checkpoint means the same whatever the engine.
"""

import gc
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.engine.accelerator import leave_process_group
from training.engine.world import World


class Engine:
    """Runs steps of a wrapped model on this rank; `training.engine.build` makes it.

    Attributes:
        world: This rank among all.
        device: Where the model is.
        model: The wrapped model, to be called for training.
        module: The plain model, for its weights.
        optimizer: The plain optimizer, for its learning rate and state; Accelerate's wrapper steps
            it.
        zero_stage: DeepSpeed's stage, or 0.
    """

    def __init__(
        self,
        accelerator: Any,
        model: nn.Module,
        module: nn.Module,
        stepper: Any,
        optimizer: torch.optim.Optimizer,
        clip_norm: float,
        zero_stage: int,
    ) -> None:
        self._accelerator = accelerator
        self._clip_norm = clip_norm
        self.world = World(accelerator.process_index, accelerator.num_processes)
        self.device: torch.device = accelerator.device
        self.model = model
        self.module = module
        self._stepper = stepper
        self.optimizer = optimizer
        self.zero_stage = zero_stage

    @property
    def weights_in_shares(self) -> bool:
        """Whether this rank keeps a share of the weights, and the module's parameters are empty."""
        return self.zero_stage == 3

    def update(
        self,
        micro_batches: Iterable[Any],
        losses: Callable[[Any], Mapping[str, Tensor]],
        lr: float,
        loss_factor: float = 1.0,
    ) -> dict[str, float]:
        """One optimizer step over this rank's micro-batches.

        Args:
            micro_batches: As many as the engine was built to accumulate.
            losses: Per-sample values (B,) of a micro-batch; `loss` among them is minimised.
            lr: Learning rate of this step.
            loss_factor: By what losses are multiplied and gradients, before anything is done with
                them, divided: a power of two.

        Returns:
            The means over the global batch, `grad_norm` before clipping, and `applied`: 0 if that
            norm, or a loss, is not finite. Then weights and optimizer are what they were, on every
            rank: the norm is that of the gradients of all ranks.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        sums: dict[str, Tensor] = {}
        count = 0
        if self.zero_stage:
            self.model.optimizer.loss_scale = loss_factor  # it scales, and undoes it, by itself
        for batch in micro_batches:
            with self._accelerator.accumulate(self.model):
                values = losses(batch)
                loss = nan_unless_finite(values["loss"].mean())
                self._accelerator.backward(loss if self.zero_stage else loss * loss_factor)
                if self._accelerator.sync_gradients:
                    norm = self._clip(loss_factor)
                # DeepSpeed has stepped within the backward pass, or has not for the same reason.
                if not self._accelerator.sync_gradients or math.isfinite(norm):
                    self._stepper.step()
                self._stepper.zero_grad()
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value.detach().mean()
            count += 1
        means = self.mean(torch.stack([sums[name].float() for name in sums]) / count)
        applied = float(math.isfinite(norm))
        named = dict(zip(sums, means.tolist(), strict=True))
        return {**named, "grad_norm": norm, "applied": applied}

    def _clip(self, loss_factor: float) -> float:
        """Clip the gradients; DeepSpeed has done so itself and only reports the norm."""
        if not self.zero_stage and loss_factor != 1:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, 1 / loss_factor)
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

    def total(self, value: float) -> float:
        """The sum of a number over the ranks."""
        return float(self.sum(torch.tensor(float(value), dtype=torch.float64, device=self.device)))

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
        del self.model, self._stepper
        gc.collect()
        if dist.is_initialized():
            leave_process_group(self.zero_stage)


def nan_unless_finite(loss: Tensor) -> Tensor:
    """A loss whose gradient is nan throughout if it is not finite itself, and unchanged if it is.

    So the gradients' norm, which is that of all ranks, tells of every loss too.
    """
    value = loss.detach()
    return loss * torch.where(value.isfinite(), 1.0, torch.nan)


def flat_partitions(engine: Engine) -> list[Tensor]:
    """This rank's flat pieces of the weights under ZeRO; the optimizer's state is keyed by them."""
    zero = engine.model.optimizer
    if engine.weights_in_shares:
        return list(zero.fp32_partitioned_groups_flat)
    return list(zero.single_partition_of_fp32_groups)
