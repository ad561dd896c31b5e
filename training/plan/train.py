"""What `ldm train` would take: batch arithmetic, memory by engine, hours, bytes and cost."""

import math
from dataclasses import dataclass

from conf.enums import EngineKind, OptimizerKind
from conf.schema import PlanTrainCommand
from conf.training_rules import micro_batch, ranks_of
from training.perf import FORWARDS_A_STEP
from training.plan.denoiser import Denoiser
from training.plan.machine import Machine, machine_of
from training.plan.state import Offload, State, sent_bytes, state_of
from training.sizes import (
    checkpoint_bytes,
    kept_checkpoints,
    kept_snapshots,
    snapshot_bytes,
)

ZERO = (EngineKind.zero1, EngineKind.zero2, EngineKind.zero3)


@dataclass(frozen=True, slots=True)
class EngineRow:
    """What a rank of one engine needs.

    Args:
        kind: The engine.
        offload: What lies in host memory.
        state: What it keeps between steps.
        activations: Bytes that a micro-batch's forward pass keeps.
        one_memory: Whether the device's memory is the host's.
    """

    kind: EngineKind
    offload: Offload
    state: State
    activations: int
    one_memory: bool

    @property
    def total(self) -> int:
        """Bytes on the device, at the most."""
        return self.state.total + self.activations + self.state.host * self.one_memory

    @property
    def settings(self) -> str:
        """What chooses it on the command line."""
        offload = self.offload
        return (
            f"engine={self.kind.value}"
            + " engine.offload_optimizer=true" * offload.optimizer
            + " engine.offload_parameters=true" * offload.parameters
        )


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """What a training would take.

    Args:
        parameters: Of the denoiser.
        samples: To train on.
        batch_size: Samples of a step.
        micro_batch_size: Samples of a rank's forward pass.
        ranks: How many.
        accumulation: Micro-batches of a step.
        steps: Of the whole training.
        epochs: Of the dataset; None if its size is not known.
        dataset_bytes: Of the dataset; None if its size is not known.
        machine: What each rank computes on.
        usable: Bytes of its memory that may be planned with.
        engines: What each engine needs of it.
        chosen: The one of the settings.
        flops: Of a forward pass for one image, in the mean over image sizes.
        forwards: How many times that a step takes for each image.
        step_seconds: Of one step.
        hours: Of the whole training.
        dollars: Of all ranks' hours; None without a price.
        read_bytes: That all ranks read in a second.
        sent_bytes: That each rank sends in a step.
        checkpoint_bytes: Of one checkpoint.
        snapshot_bytes: Of all copies of the averages of which others are rebuilt.
        staged_bytes: Of host memory that each rank writes them from.
        checkpoints: That are kept at the end.
        checkpoint_seconds: To write one.
        remarks: What is assumed, in words.
    """

    parameters: int
    samples: int
    batch_size: int
    micro_batch_size: int
    ranks: int
    accumulation: int
    steps: int
    epochs: float | None
    dataset_bytes: float | None
    machine: Machine
    usable: int
    engines: tuple[EngineRow, ...]
    chosen: EngineRow
    flops: float
    forwards: int
    step_seconds: float
    hours: float
    dollars: float | None
    read_bytes: float
    sent_bytes: int
    checkpoint_bytes: int
    snapshot_bytes: int
    staged_bytes: int
    checkpoints: int
    checkpoint_seconds: float
    remarks: tuple[str, ...]


def plan_train(config: PlanTrainCommand, denoiser: Denoiser) -> TrainPlan:
    """Plan a training: nothing is computed but shapes.

    Args:
        config: The settings.
        denoiser: As they make it.

    Raises:
        UserError: The machine, or a run that the plan is to be like, is not known.

    Source: of the seconds, Chowdhery et al. 2022 (PaLM), appendix B.
    """
    plan, fed, ranks = config.plan, denoiser.fed, ranks_of(config)[0]
    micro = micro_batch(config.batch_size, config.micro_batch_size, ranks)
    accumulation = config.batch_size // (micro * ranks)
    local_ranks = plan.gpus or config.cluster.processes
    machine = machine_of(plan, local_ranks, config.engine.precision)
    engine = config.engine
    activations = denoiser.kept(micro, engine.precision, machine.kind, engine.recompute)
    rows = engine_rows(config, denoiser, ranks, activations, machine.kind == "cpu")
    parameters = sum(denoiser.sizes)
    steps = math.ceil(config.train.samples / config.batch_size)
    forwards = FORWARDS_A_STEP
    if engine.recompute and plan.like is None:
        forwards += 1  # a measured MFU has the second forward pass in it
    rate = machine.mfu * machine.peak.flops * ranks
    seconds = forwards * denoiser.flops * config.batch_size / rate
    hours, price = steps * seconds / 3600, plan.dollars_per_gpu_hour
    lengths = config.train.ema_lengths
    checkpoint = checkpoint_bytes(denoiser.sizes, config.optimizer.kind, lengths)
    return TrainPlan(
        parameters=parameters,
        samples=config.train.samples,
        batch_size=config.batch_size,
        micro_batch_size=micro,
        ranks=ranks,
        accumulation=accumulation,
        steps=steps,
        epochs=None if fed.samples is None else config.train.samples / fed.samples,
        dataset_bytes=None if fed.samples is None else fed.samples * fed.bytes,
        machine=machine,
        usable=machine.memory - int(plan.reserve_gb * 1e9),
        engines=rows,
        chosen=rows[-1],
        flops=denoiser.flops,
        forwards=forwards,
        step_seconds=seconds,
        hours=hours,
        dollars=None if price is None else hours * ranks * price,
        read_bytes=config.batch_size / seconds * fed.bytes,
        sent_bytes=sent_bytes(config.engine.kind, parameters, ranks, accumulation),
        checkpoint_bytes=checkpoint,
        snapshot_bytes=kept_snapshots(config.train) * snapshot_bytes(denoiser.sizes, lengths),
        staged_bytes=(checkpoint + snapshot_bytes(denoiser.sizes, lengths)) // ranks,
        checkpoints=kept_checkpoints(config.checkpoint, config.train.samples),
        checkpoint_seconds=checkpoint / ranks / (plan.store_mb_s * 1e6),
        remarks=fed.remarks,
    )


def engine_rows(
    config: PlanTrainCommand, denoiser: Denoiser, ranks: int, activations: int, one_memory: bool
) -> tuple[EngineRow, ...]:
    """What the engines need that could be chosen for so many ranks; the last is the chosen one."""
    engine, optimizer = config.engine, config.optimizer.kind
    chosen = (engine.kind, Offload(engine.offload_optimizer, engine.offload_parameters))
    ways = [(EngineKind.single if ranks == 1 else EngineKind.ddp, Offload())]
    if optimizer is OptimizerKind.adamw:  # the other one's moments are not cut into shares
        ways += [(kind, Offload()) for kind in ZERO]
        ways.append((EngineKind.zero2, Offload(optimizer=True)))
        ways.append((EngineKind.zero3, Offload(optimizer=True, parameters=True)))
    sizes, averages = denoiser.sizes, 1 + len(config.train.ema_lengths)
    return tuple(
        EngineRow(
            kind,
            offload,
            state_of(kind, sizes, ranks, offload, optimizer, averages),
            activations,
            one_memory,
        )
        for kind, offload in (*(way for way in ways if way != chosen), chosen)
    )
