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
from training.engine.retention import ALL, Keep
from training.engine.saving import Saver
from training.engine.world import current_world
from training.loop import Loop
from training.perf import Use, device_peak, meta_copy
from training.rebuild import SNAPSHOTS
from training.recompute import recompute_blocks
from training.run import TrainingConfigs, claim_run
from training.sizes import checkpoint_bytes
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
    # A new checkpoint is written before the oldest one goes.
    kept = config.checkpoint.keep_last + config.checkpoint.keep_best
    each = checkpoint_bytes(sizes, config.optimizer.kind, config.train.ema_lengths)
    out.require_writable(each * (kept + 1))
    claim_run(out, config, task.command, task.data, task.identity, task.free, task.files)
    checkpoint = latest_checkpoint(out)
    start = checkpoint.progress if checkpoint else first_progress(config.engine.precision)
    if start.samples_seen >= config.train.samples:
        if world.main:
            say(
                f"{task.command}: {out.url} is finished ({start.samples_seen:,} samples), "
                "nothing to do"
            )
        return
    if checkpoint:
        task.model.load_state_dict(checkpoint.weights())
    shapes = meta_copy(task.model)  # before an engine changes what the model does
    if config.engine.recompute:
        recompute_blocks(task.model)
    steps = config.batch_size // (micro * world.size)
    engine = build_engine(config.engine, config.optimizer, task.model, micro, steps)
    if len(set(engine.gather(start))) > 1:
        raise RunError(f"{out.url}: the ranks do not see the same checkpoints; run again")
    peak = device_peak(engine.device, config.engine.precision)
    if world.main:
        origin = f"from {start.samples_seen:,} samples" if checkpoint else "from the start"
        stage = f"{config.engine.kind.value} on {world.size} ranks of {engine.device}"
        say(f"{task.command}: {sum(sizes) / 1e6:.1f}M parameters, {stage}, {origin}; peak {peak}")
    with contextlib.ExitStack() as closing:
        closing.callback(engine.close)
        tracker = _tracker(config, task, out, checkpoint, world.main)
        closing.callback(tracker.close)
        closing.push(lambda _, error, __: _call(tracker, task.command, error))
        if checkpoint:
            restore_optimizer(engine, checkpoint)
        averages = Averages(engine, config.train, checkpoint)
        use = Use(task.losses, shapes, engine.total(peak.flops))
        saver = Saver(out, engine, _keep(config), checkpoint.val_loss if checkpoint else None)
        closing.callback(saver.close)
        saver.tracker = tracker.wandb_id
        saver.on_commit = lambda step, commit: tracker.saved(
            Saved(step, (out / FOLDER / step).absolute, commit)
        )
        snapshots = Saver(out / SNAPSHOTS, engine, ALL)
        closing.callback(snapshots.close)
        Loop(config, task, engine, out, tracker, start, averages, use, saver, snapshots).run()


def _tracker(
    config: TrainingConfigs, task: Task, out: Prefix, checkpoint: Checkpoint | None, main: bool
) -> Tracker:
    """The record, going on where the checkpoint was; what the run came from is kept with it."""
    seen = checkpoint.progress.samples_seen if checkpoint else 0
    lineage: dict[str, Any] = {}
    if main:
        code = code_state()
        lineage = lineage_of(task.data, code)
        keep_lineage(out, lineage, code, seen)
    known = checkpoint.tracker if checkpoint else None
    settings = config_dict(config)
    return Tracker(out, config.tracking, settings, seen, main, known, lineage)


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
