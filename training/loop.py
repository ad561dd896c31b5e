"""The training loop, one for every model: read, step, run what is due, save."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from conf.compose import config_dict
from conf.errors import Preempted, RunError
from conf.rules import micro_batch
from data.corpus import Corpus
from data.loader import Loader
from data.progress import peak_memory, progress, write_summary
from data.retry import StoppedWaiting
from data.say import say
from data.storage import Prefix, open_prefix
from training.ema import averaged, ema_weight, update_ema
from training.engine.build import build_engine
from training.engine.checkpoint import (
    Checkpoint,
    Progress,
    first_progress,
    latest_checkpoint,
    restore_optimizer,
)
from training.engine.heartbeat import Heartbeat
from training.engine.pulse import Phase
from training.engine.retention import Keep
from training.engine.saving import Saver
from training.engine.shares import kept_of, kept_weights, whole, without_gathering
from training.engine.strategy import Engine
from training.engine.world import current_world
from training.guards import Guards
from training.optim import learning_rate
from training.perf import Interval, Losses, Use, device_peak, meta_copy
from training.random import step_seed
from training.run import TrainingConfigs, claim_run
from training.stop import Deadline, stop_flag
from training.track import Tracker
from training.watch import VAL_LOSS, Watch

# Weights, average and two moments, in float32.
BYTES_PER_PARAMETER = 16


@dataclass(frozen=True, slots=True)
class Task:
    """What differs between one kind of training and another.

    Args:
        command: Its name.
        model: The plain model with fresh weights, the same on every rank.
        data: What is read.
        collate: Makes the micro-batch of the samples at some places.
        losses: Per-sample values of a micro-batch, (B,) each; `loss` is minimised. Called with the
            wrapped model.
        identity: What decides the result besides settings and data, JSON-ready.
        free: Settings that do not decide it, or whose effect `identity` tells.
        files: Kept with the run, by name.
        watches: What is measured and shown on the way.
    """

    command: str
    model: nn.Module
    data: Corpus
    collate: Callable[[Corpus, range], Any]
    losses: Losses
    identity: Mapping[str, Any] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    watches: tuple[Watch, ...] = ()


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
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    # A new checkpoint is written before the oldest one goes.
    kept = config.checkpoint.keep_last + config.checkpoint.keep_best
    out.require_writable(parameters * BYTES_PER_PARAMETER * (kept + 1))
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
    steps = config.batch_size // (micro * world.size)
    engine = build_engine(config.engine, config.optimizer, task.model, micro, steps)
    if len(set(engine.gather(start))) > 1:
        raise RunError(f"{out.url}: the ranks do not see the same checkpoints; run again")
    peak = device_peak(engine.device, config.engine.precision)
    if world.main:
        origin = f"from {start.samples_seen:,} samples" if checkpoint else "from the start"
        stage = f"{config.engine.kind.value} on {world.size} ranks of {engine.device}"
        say(f"{task.command}: {parameters / 1e6:.1f}M parameters, {stage}, {origin}; peak {peak}")
    with contextlib.ExitStack() as closing:
        closing.callback(engine.close)
        tracker = Tracker(out, config.tracking, config_dict(config), start.samples_seen, world.main)
        closing.callback(tracker.close)
        ema = _start_ema(engine, checkpoint)
        use = Use(task.losses, shapes, _sum(engine, peak.flops))
        saver = Saver(out, engine, _keep(config), checkpoint.val_loss if checkpoint else None)
        closing.callback(saver.close)
        _Loop(config, task, engine, out, tracker, start, ema, use, saver).run()


class _Loop:
    """The state that changes while a run goes on, and the steps that change it."""

    def __init__(
        self,
        config: TrainingConfigs,
        task: Task,
        engine: Engine,
        out: Prefix,
        tracker: Tracker,
        start: Progress,
        ema: list[Tensor],
        use: Use,
        saver: Saver,
    ) -> None:
        self.config, self.task, self.engine, self.out, self.tracker = (
            config,
            task,
            engine,
            out,
            tracker,
        )
        self.start = self.progress = self.saved = start
        self.ema = ema
        self.use = use
        self.weights = kept_weights(engine)
        self.began = time.perf_counter()
        self.interval = Interval()
        self.guards = Guards(config.guards, engine, task.data, task.losses, out)
        self.deadline = Deadline(config.cluster.minutes)
        self.saver = saver
        self.stall_told = 0.0
        self.heart = Heartbeat(engine.world, config.guards.hang_seconds, start.updates)

    def run(self) -> None:
        total, main = self.config.train.samples, self.engine.world.main
        shown = progress(self.task.command, total, self.progress.samples_seen, shown=main)
        done = False
        with stop_flag(self.task.data.stop_waiting) as stop, shown as meter, self.heart:
            for micro_batches, waited in self._batches():
                # Asked before the step: a rank that stopped waiting for data has none to make.
                told = stop.requested or self.deadline.near(self.saver.seconds)
                if self.engine.any(told or micro_batches is None or self.saver.failed):
                    break
                self.use.count(micro_batches[0])
                if self.progress == self.start:
                    spent = self.guards.before_steps(self.progress, micro_batches[0])
                    self.interval.leave_out(spent)
                means = self._step(micro_batches)
                self.interval.add(waited, self.config.batch_size)
                meter.advance(self.config.batch_size, f"loss {means['loss']:.4f}{self.use}")
                done = self.progress.samples_seen >= total
                if done or self._due(self.config.tracking.log_every_samples):
                    self._log(means, meter.seconds_left)
                self._watch(done)
                if self._due(self.config.guards.digest_every_samples):
                    self.guards.compare_ranks()
                if done or self._due(self.config.checkpoint.every_samples):
                    self._save()
                if done:
                    break
            if not done and self.progress != self.saved:
                self._save()
            self.heart.beat(self.progress.updates, Phase.saving)
            self.saver.finish()
        self._summarise()
        if not done:
            raise Preempted(
                f"stopped after {self.progress.samples_seen:,} samples, checkpoint saved; "
                "the same command goes on from there"
            )

    def _batches(self) -> Iterator[tuple[list[Any] | None, float]]:
        """This rank's micro-batches of each global batch, and the seconds waited for them.

        None for a batch that waited for a store that is gone when the run was told to stop.
        """
        config, world = self.config, self.engine.world
        micro = micro_batch(config.batch_size, config.micro_batch_size, world.size)
        loader = Loader(
            self.task.data,
            self.task.collate,
            config.batch_size,
            micro,
            world.rank,
            world.size,
            config.data.threads,
        )
        loader.load_state_dict({"place": self.progress.samples_seen})
        steps = config.batch_size // (micro * world.size)
        with contextlib.closing(loader):
            while True:
                asked = time.perf_counter()
                self.heart.beat(self.progress.updates, Phase.reading)
                try:
                    micro_batches = [*self.heart.each(islice(loader, steps))]
                except StoppedWaiting:
                    micro_batches = None
                self.heart.beat(self.progress.updates, Phase.computing)
                yield micro_batches, time.perf_counter() - asked

    def _step(self, micro_batches: list[Any]) -> dict[str, float]:
        config, seen = self.config, self.progress.samples_seen
        torch.manual_seed(step_seed(config.train.seed, seen, self.engine.world.rank))
        rate = learning_rate(config.optimizer, seen, config.train.samples)
        means = self.engine.update(
            self.heart.each(micro_batches),
            lambda batch: self.task.losses(self.engine.model, batch, self.engine.device),
            rate,
            self.progress.loss_scale.factor if self.progress.loss_scale else 1.0,
        )
        after = self.guards.after_step(self.progress, means, micro_batches)
        self.progress = replace(
            after, samples_seen=seen + config.batch_size, updates=after.updates + 1
        )
        if means.pop("applied"):
            weight = ema_weight(
                self.progress.samples_seen, config.batch_size, config.train.ema_half_life
            )
            update_ema(self.ema, self.weights, weight)
        scale = self.progress.loss_scale
        return {
            **means,
            "lr": rate,
            "skipped": self.progress.skipped,
            **({"loss_scale": scale.factor} if scale else {}),
        }

    def _due(self, every: int) -> bool:
        """Whether the last step passed a multiple of `every` samples."""
        seen = self.progress.samples_seen
        return bool(every) and seen // every > (seen - self.config.batch_size) // every

    def _log(self, means: dict[str, float], seconds_left: float) -> None:
        figures = self.interval.close()
        figures["mfu"] = self.use.of(figures["images_per_second"])
        figures["seconds_left"] = seconds_left
        if self.engine.device.type == "cuda":
            most = torch.cuda.max_memory_allocated(self.engine.device)
            figures["peak_device_memory"] = _sum(self.engine, most)
        if self.saver.stalled > self.stall_told:
            figures["checkpoint_stall"] = self.saver.stalled - self.stall_told
            self.stall_told = self.saver.stalled
        values = {**means, **figures, "peak_memory": self._peak_memory()}
        self.tracker.log(self.progress.samples_seen, values)

    def _watch(self, done: bool) -> None:
        """Take the looks that are due, before a checkpoint: what it says was seen, was seen."""
        due = [one for one in self.task.watches if done or self._due(one.every_samples)]
        if not due:
            return
        self.heart.beat(self.progress.updates, Phase.validating)
        began, seen = time.perf_counter(), self.progress.samples_seen
        averages = [*whole(self.engine, self.ema)]
        with without_gathering(self.engine), averaged(self.engine.module, averages):
            found = [one.look(self.engine) for one in due]
        for one in found:
            if one.values:
                self.tracker.log(seen, dict(one.values))
                self.saver.val_loss = one.values.get(VAL_LOSS, self.saver.val_loss)
            for folder, picture in one.pictures.items():
                self.tracker.show(seen, folder, picture)
        self.interval.leave_out(time.perf_counter() - began)

    def _save(self) -> None:
        self.heart.beat(self.progress.updates, Phase.saving)
        # What is logged up to here is written before the checkpoint is committed.
        self.saver.save(self.ema, self.progress, self.tracker.writer())
        self.saved = self.progress

    def _peak_memory(self) -> float:
        """Bytes, over all ranks."""
        return _sum(self.engine, peak_memory())

    def _summarise(self) -> None:
        memory = int(self._peak_memory())
        if self.engine.world.main:
            samples = self.progress.samples_seen - self.start.samples_seen
            seconds = time.perf_counter() - self.began
            write_summary(self.out, self.task.command, samples, seconds, memory)


def _sum(engine: Engine, value: float) -> float:
    """The sum of a number over the ranks."""
    own = torch.tensor(float(value), dtype=torch.float64, device=engine.device)
    return float(engine.sum(own))


def _keep(config: TrainingConfigs) -> Keep:
    told = config.checkpoint
    return Keep(told.keep_last, told.keep_every_samples, told.keep_best)


def _start_ema(engine: Engine, checkpoint: Checkpoint | None) -> list[Tensor]:
    """What this rank keeps of the averages: the checkpoint's, or a copy of the fresh weights."""
    if checkpoint is None:
        return [weights.clone() for weights in kept_weights(engine)]
    restore_optimizer(engine, checkpoint)
    return kept_of(engine, checkpoint.averages())
