"""Trains any model: takes the run up where it was, builds the engine, and runs the loop."""

import contextlib
from typing import Any

from conf.compose import config_dict
from conf.errors import Preempted, RunError
from conf.training_rules import micro_batch
from data.say import say
from data.storage import Prefix, open_prefix
from training.averages import Averages
from training.engine.build import build_engine
from training.engine.checkpoint import (
    FOLDER,
    Checkpoint,
    first_progress,
    latest_checkpoint,
    restore_optimizer,
)
from training.engine.heartbeat import Heartbeat, give_up
from training.engine.lease import Lease
from training.engine.retention import ALL, Keep
from training.engine.saving import Saver
from training.engine.strategy import Engine
from training.engine.world import current_world
from training.in_vain import bounded_stops
from training.loop import Loop
from training.perf import Peak, Use, device_peak, meta_copy
from training.rebuild import SNAPSHOTS
from training.recompute import recompute_blocks
from training.run import TrainingConfigs, claim_run
from training.sizes import run_bytes
from training.task import Task
from training.track import Tracker
from training.tracking.code import code_state
from training.tracking.lineage import keep_lineage, lineage_of
from training.tracking.sink import Saved


def train(config: TrainingConfigs, task: Task) -> None:
    """Train from the last checkpoint, or from the start, to `train.samples`.

    Raises:
        UserError: `out` holds another run, or cannot be written.
        RunError: The loss is no longer finite.
        Preempted: Told to stop; a checkpoint is saved.
    """
    out = open_prefix(config.out, "out")
    world = current_world()
    micro = micro_batch(config.batch_size, config.micro_batch_size, world.size)
    sizes = [parameter.numel() for parameter in task.model.parameters()]
    out.require_writable(run_bytes(sizes, config.optimizer.kind, config.train, config.checkpoint))
    claim_run(out, config, task.command, task.data, task.identity, task.free, task.files)
    heart = Heartbeat(world, config.guards.hang_seconds)
    with contextlib.ExitStack() as closing, heart:  # before ranks meet: one may never come
        lease = closing.enter_context(Lease(out, heart.again)) if world.main else None
        closing.enter_context(bounded_stops(out, world.main))
        checkpoint = latest_checkpoint(out, on_piece=heart.again)
        start = checkpoint.progress if checkpoint else first_progress(config.engine.precision)
        if start.samples_seen >= config.train.samples:
            if world.main:
                told = f"is finished ({start.samples_seen:,} samples), nothing to do"
                say(f"{task.command}: {out.url} {told}")
            return
        if checkpoint:
            task.model.load_state_dict(checkpoint.weights())
        shapes = meta_copy(task.model)  # before an engine changes what the model does
        if config.engine.recompute:
            recompute_blocks(task.model)
        heart.begin(start.updates)
        steps = config.batch_size // (micro * world.size)
        engine = build_engine(config.engine, config.optimizer, task.model, micro, steps)
        closing.callback(engine.close)
        if len(set(engine.gather(start))) > 1:
            raise RunError(f"{out.url}: the ranks do not see the same checkpoints; run again")
        peak = device_peak(engine.device, config.engine.precision)
        if world.main:
            _say_start(config, task, engine, sum(sizes), checkpoint, peak)
        heart.again()  # each part of a start may take the whole limit
        tracker = _tracker(config, task, out, checkpoint, lease)
        closing.callback(tracker.close)
        closing.push(lambda _, error, __: _call(tracker, task.command, error))
        heart.again()
        if checkpoint:
            restore_optimizer(engine, checkpoint)
        heart.again()
        averages = Averages(engine, config.train, checkpoint)
        use = Use(task.losses, shapes, engine.total(peak.flops))
        saver, snapshots = _savers(config, out, engine, checkpoint, lease)
        closing.callback(saver.close)
        saver.tracker = tracker.wandb_id
        saver.on_commit = lambda step, commit: tracker.saved(
            Saved(step, (out / FOLDER / step).absolute, commit)
        )
        closing.callback(snapshots.close)
        Loop(
            config, task, engine, out, tracker, start, averages, use, saver, snapshots, heart
        ).run()


def _savers(
    config: TrainingConfigs,
    out: Prefix,
    engine: Engine,
    checkpoint: Checkpoint | None,
    lease: Lease | None,
) -> tuple[Saver, Saver]:
    """What saves checkpoints, and what saves averages for good."""
    saver = Saver(out, engine, _keep(config))
    if checkpoint:
        saver.val_loss, saver.validation = checkpoint.val_loss, checkpoint.validation
    snapshots = Saver(out / SNAPSHOTS, engine, ALL)
    for one in (saver, snapshots):
        one.lease, one.hang_seconds, one.on_hang = lease, config.guards.hang_seconds, give_up
    return saver, snapshots


def _say_start(
    config: TrainingConfigs,
    task: Task,
    engine: Engine,
    parameters: int,
    checkpoint: Checkpoint | None,
    peak: Peak,
) -> None:
    seen = checkpoint.progress.samples_seen if checkpoint else 0
    origin = f"from {seen:,} samples" if checkpoint else "from the start"
    where = f"{config.engine.kind.value} on {engine.world.size} ranks of {engine.device}"
    say(f"{task.command}: {parameters / 1e6:.1f}M parameters, {where}, {origin}; peak {peak}")


def _tracker(
    config: TrainingConfigs,
    task: Task,
    out: Prefix,
    checkpoint: Checkpoint | None,
    lease: Lease | None,
) -> Tracker:
    """The record, going on where the checkpoint was; what the run came from is kept with it.

    It is written by the rank that has the lease, for as long as it has it.
    """
    seen = checkpoint.progress.samples_seen if checkpoint else 0
    lineage: dict[str, Any] = {}
    if lease:
        code = code_state()
        lineage = lineage_of(task.data, code)
        keep_lineage(out, lineage, code, seen)
    known = checkpoint.tracker if checkpoint else None
    settings = config_dict(config)
    tracker = Tracker(out, config.tracking, settings, seen, lease is not None, known, lineage)
    if lease:
        tracker.require(lease.require)
    return tracker


def _call(tracker: Tracker, command: str, error: BaseException | None) -> None:
    """Have people called when a run ends, however it does; the command line says why."""
    match error:
        case None:
            tracker.alert("finished", f"{command} is done")
        case Preempted():
            tracker.alert("stopped", f"{command}: {error}")
        case _:
            tracker.alert("failed", f"{command}: {error or type(error).__name__}")


def _keep(config: TrainingConfigs) -> Keep:
    told = config.checkpoint
    return Keep(told.keep_last, told.keep_every_samples, told.keep_best)
