"""The training loop, one for every model: read, step, run what is due, save."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from conf.errors import Preempted, RunError
from conf.training_rules import micro_batch
from data.loader import Loader
from data.progress import progress, write_summary
from data.retry import StoppedWaiting
from data.say import say
from data.storage import Prefix
from training.averages import Averages
from training.ema import averaged
from training.engine.checkpoint import Progress
from training.engine.heartbeat import Heartbeat
from training.engine.pieces import average_pieces, pieces_of
from training.engine.pulse import Phase, main_stack
from training.engine.saving import Saver
from training.engine.shares import size_of, whole, without_gathering
from training.engine.strategy import Engine
from training.guards import Guards
from training.headroom import memory_figures, to_come
from training.names import VAL_LOSS
from training.optim import learning_rate
from training.pace import Pace
from training.perf import Interval, Use
from training.random import step_seed
from training.run import TrainingConfigs
from training.shown import shown
from training.sizes import checkpoint_bytes
from training.spread import weight_histograms
from training.stop import Deadline, StopFlag, stop_flag
from training.task import Task
from training.track import Tracker
from training.tracking.stall import Stall
from training.watch import Seen


class Loop:
    """The state that changes while a run goes on, and the steps that change it."""

    def __init__(
        self,
        config: TrainingConfigs,
        task: Task,
        engine: Engine,
        out: Prefix,
        tracker: Tracker,
        start: Progress,
        averages: Averages,
        use: Use,
        saver: Saver,
        snapshots: Saver,
        heart: Heartbeat,
    ) -> None:
        self.config, self.task, self.engine = config, task, engine
        self.out, self.tracker = out, tracker
        self.start = self.progress = self.saved = start
        self.averages = averages
        self.use = use
        self.began = time.perf_counter()
        self.interval, self.pace = Interval(), Pace(engine.device)
        self.guards = Guards(
            config.guards, engine, task.data, task.losses, out, to_come(engine, config)
        )
        sizes = [size_of(parameter) for parameter in engine.module.parameters()]
        written = checkpoint_bytes(sizes, config.optimizer.kind, config.train.ema_lengths)
        self.deadline = Deadline(config.cluster.minutes, written // engine.world.size)
        self.figures: dict[str, float] = {}
        self.saver, self.snapshots = saver, snapshots
        self.stall_told = 0.0
        self.heart = heart
        for one in (saver, snapshots):
            one.on_wait = self.heart.again

    def run(self) -> None:
        """Take all steps that are left, or as many as there is time for.

        Raises:
            RunError: The loss is no longer finite, or a checkpoint cannot be written.
            Preempted: Told to stop; a checkpoint is saved.
        """
        total, main = self.config.train.samples, self.engine.world.main
        bar = progress(self.task.command, total, self.progress.samples_seen, shown=main)
        done = False
        flag = stop_flag(self.task.data.stop_waiting)
        with flag as stop, bar as meter, self._stalls():
            for micro_batches, waited in self._batches():
                # Asked before the step: a rank that stopped waiting for data has none to make.
                told = self._told(stop)
                if self.engine.any(told or micro_batches is None or self._failed):
                    break
                self.use.count(micro_batches[0])
                if self.progress == self.start:
                    spent = self.guards.before_steps(micro_batches[0])
                    self.interval.leave_out(spent)
                began = time.perf_counter()
                means = self._step(micro_batches)
                self.deadline.step(waited + time.perf_counter() - began)
                self.interval.add(waited, self.config.batch_size)
                self.pace.step(waited, self.config.batch_size // self.engine.world.size)
                meter.advance(self.config.batch_size, shown(means, self.figures))
                done = self.progress.samples_seen >= total
                if done or self._due(self.config.tracking.log_every_samples):
                    self._log(means, meter.seconds_left)
                self._watch(done, stop)
                if self._due(self.config.tracking.histograms_every_samples):
                    self._spread()
                if self._due(self.config.guards.digest_every_samples):
                    self.guards.compare_ranks()
                self._keep_averages()
                if done or self._due(self.config.checkpoint.every_samples):
                    self._save()
                if done:
                    break
            if not done and self.progress == self.start:
                self._require_time(stop)
            if not done and self.progress != self.saved:
                self._save()
            self.heart.beat(self.progress.updates, Phase.saving)
            for saver in (self.snapshots, self.saver):
                saver.finish()
        self._summarise()
        if not done:
            raise Preempted(
                f"stopped after {self.progress.samples_seen:,} samples, checkpoint saved; "
                "the same command goes on from there"
            )

    def _told(self, stop: StopFlag) -> bool:
        """Whether this rank is to stop: for a signal, or because time runs out."""
        return stop.requested or self.deadline.near(self.saver.seconds + self.snapshots.seconds)

    def _require_time(self, stop: StopFlag) -> None:
        """Refuse to have a scheduler start again and again what never makes a step. Collective."""
        if self.engine.any(stop.requested) or not self.engine.any(self._told(stop)):
            return
        raise RunError(
            f"cluster.minutes={self.config.cluster.minutes:g}: they are over, but for the time "
            "that a checkpoint takes, before the first step; give more"
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
            self.pace.timed(
                lambda batch: self.task.losses(self.engine.model, batch, self.engine.device)
            ),
            rate,
            self.progress.loss_scale.factor if self.progress.loss_scale else 1.0,
        )
        after = self.guards.after_step(self.progress, means, micro_batches)
        if after.skipped - after.overflows > self.progress.skipped - self.progress.overflows:
            self.tracker.alert("not finite", f"a batch was passed over after {seen:,} samples")
        self.progress = replace(
            after, samples_seen=seen + config.batch_size, updates=after.updates + 1
        )
        if means.pop("applied"):
            self.averages.update(self.progress.samples_seen, config.batch_size)
        scale = self.progress.loss_scale
        return {
            **means,
            "lr": rate,
            "skipped": self.progress.skipped,
            **({"loss_scale": scale.factor} if scale else {}),
        }

    @property
    def _failed(self) -> bool:
        return self.saver.failed or self.snapshots.failed

    def _due(self, every: int) -> bool:
        """Whether the last step passed a multiple of `every` samples."""
        seen = self.progress.samples_seen
        return bool(every) and seen // every > (seen - self.config.batch_size) // every

    def _log(self, means: dict[str, float], seconds_left: float) -> None:
        figures = self.interval.close() | self.pace.figures(self.engine)
        figures["mfu"] = self.use.of(figures["images_per_second"])
        figures["seconds_left"] = seconds_left
        stalled = self.saver.stalled + self.snapshots.stalled
        if stalled > self.stall_told:
            figures["checkpoint_stall"] = stalled - self.stall_told
            self.stall_told = stalled
        self.figures = figures | memory_figures(self.engine)
        self.tracker.log(self.progress.samples_seen, {**means, **self.figures})

    def _spread(self) -> None:
        began = time.perf_counter()
        histograms = weight_histograms(self.engine)
        self.tracker.spread(self.progress.samples_seen, histograms)
        self.interval.leave_out(time.perf_counter() - began)

    def _stalls(self) -> Stall:
        """What tells people that nothing gets on; on rank 0, with which the others stall."""

        def tell(line: str) -> None:
            told = f"after {self.progress.samples_seen:,} samples {line}"
            say(f"{self.task.command}: {told}")
            self.tracker.alert("stall", told)

        seconds = self.config.tracking.stall_seconds if self.engine.world.main else 0.0
        return Stall(seconds, self._signs, tell)

    def _signs(self) -> tuple[Any, ...]:
        """What changes as this rank gets on; the first step may compile, without any beat."""
        return self.heart.beats, main_stack() if self.progress == self.start else None

    def _watch(self, done: bool, stop: StopFlag) -> None:
        """Take the looks that are due, before a checkpoint: what it says was seen, was seen."""
        due = [one for one in self.task.watches if done or self._due(one.every_samples)]
        if not due:
            return
        self.heart.beat(self.progress.updates, Phase.validating)
        began, seen = time.perf_counter(), self.progress.samples_seen

        def go_on() -> bool:
            self.heart.again()
            return done or not self._told(stop)  # nobody would take the last look again

        averages = [*whole(self.engine, self.averages.own)]
        found: list[Seen] = []
        with without_gathering(self.engine), averaged(self.engine.module, averages):
            for one in due:
                what = one.look(self.engine, go_on)
                if what is None:
                    break
                found.append(what)
        if len(found) < len(due) and self.engine.world.main:
            say(f"{self.task.command}: told to stop, so what was being measured is left out")
        for one, watch in zip(found, due, strict=False):  # those that were left have no answer
            if one.values:
                self.tracker.log(seen, dict(one.values))
            if VAL_LOSS in one.values:
                self.saver.val_loss, self.saver.validation = one.values[VAL_LOSS], watch.meaning
            for folder, picture in one.pictures.items():
                self.tracker.show(seen, folder, picture)
        self.interval.leave_out(time.perf_counter() - began)

    def _save(self) -> None:
        self.heart.beat(self.progress.updates, Phase.saving)
        self.snapshots.finish()  # or a run that goes on from here would never take it again
        # What is logged up to here is written before the checkpoint is committed.
        pieces = pieces_of(self.engine, self.averages.kept)
        self.saver.save(pieces, self.progress, self.tracker.writer())
        self.saved = self.progress

    def _keep_averages(self) -> None:
        """Copy, for good, the averages that others are rebuilt of."""
        if self.averages.of_lengths and self._due(self.config.train.ema_snapshot_every_samples):
            pieces = average_pieces(self.engine, self.averages.of_lengths)
            self.snapshots.save(pieces, self.progress)

    def _summarise(self) -> None:
        memory = int(memory_figures(self.engine)["peak_memory"])
        if self.engine.world.main:
            samples = self.progress.samples_seen - self.start.samples_seen
            seconds = time.perf_counter() - self.began
            write_summary(self.out, self.task.command, samples, seconds, memory)
