"""What is watched while training goes on: updates that fail, spikes, ranks that drift apart."""

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from conf.enums import OnNonfinite
from conf.errors import Diverged, RunError
from conf.training import GuardsConfig
from data.corpus import Corpus
from data.say import say
from data.storage import Prefix
from training.diagnose import diagnosed, plain, sample_names, weights_not_finite
from training.dry import dry_batch
from training.ema import pointed
from training.engine.checkpoint import Progress
from training.engine.shares import whole_weights, without_gathering
from training.engine.strategy import Engine
from training.headroom import ToCome
from training.task import Losses


class Spikes:
    """Tells a loss that is far above what losses have been.

    Args:
        deviations: How many standard deviations of the running mean are far; 0 is never.
    """

    DECAY, WARM_UP = 0.98, 50

    def __init__(self, deviations: float) -> None:
        self.deviations = deviations
        self.mean, self.variance, self.count = 0.0, 0.0, 0
        self.far = False

    def meet(self, loss: float) -> float | None:
        """By how many deviations a loss is above the mean, if that is far and the one before not.

        It then counts as one that is just not far: a spike moves the mean by little, and losses
        that stay up become what is usual.
        """
        deviation = math.sqrt(max(self.variance, 1e-20))
        above = (loss - self.mean) / deviation
        far = bool(self.deviations) and self.count >= self.WARM_UP and above > self.deviations
        first, self.far = far and not self.far, far
        off = deviation * self.deviations if far else loss - self.mean
        # Early on a plain mean, so that the first losses do not weigh for ever.
        share = max(1 / (self.count + 1), 1 - self.DECAY)
        self.mean += share * off
        self.variance = (1 - share) * (self.variance + share * off**2)
        self.count += 1
        return above if first else None


def weights_digest(module: nn.Module) -> int:
    """A sum over the bits of all weights, exact and independent of their order in memory."""
    sums = [
        parameter.detach().view(torch.int32).sum(dtype=torch.int64)
        for parameter in module.parameters()
    ]
    return int(torch.stack(sums).sum())


def check_digests(digests: Sequence[int]) -> None:
    """Refuse to go on with ranks whose weights differ.

    Raises:
        RunError: Names the ranks that are not like most, or all if no digest is that of most.
    """
    ((usual, count),) = Counter(digests).most_common(1)
    if count == len(digests):
        return
    odd = [rank for rank, digest in enumerate(digests) if digest != usual]
    if 2 * count > len(digests):
        raise RunError(
            f"the weights of rank {', '.join(map(str, odd))} are not those of the others: look at "
            "that machine's memory, and go on from the last checkpoint without it"
        )
    alike: dict[int, list[str]] = {}
    for rank, digest in enumerate(digests):
        alike.setdefault(digest, []).append(str(rank))
    sides = " and of ".join(f"rank {', '.join(ranks)}" for ranks in alike.values())
    raise RunError(
        f"the weights of {sides} differ, and no majority tells which are right: look at the memory "
        "of those machines, and go on from the last checkpoint"
    )


class Guards:
    """Watches the steps of a run.

    Args:
        config: What to watch.
        engine: The engine; every rank makes and asks its own.
        data: What is read, for the keys of samples.
        losses: Of the plain module, for a diagnosis.
        out: Where reports are written.
        to_come: Memory that this rank takes after the first batch.
    """

    def __init__(
        self,
        config: GuardsConfig,
        engine: Engine,
        data: Corpus,
        losses: Losses,
        out: Prefix,
        to_come: ToCome,
    ) -> None:
        self._config, self._engine, self._data = config, engine, data
        self._losses, self._out, self._to_come = losses, out, to_come
        self._spikes = Spikes(config.spike_deviations)

    def before_steps(self, micro_batch: Any) -> float:
        """Try this rank's first micro-batch, if that is wanted.

        Args:
            micro_batch: As the loader gives it.

        Returns:
            The seconds that it took.

        Raises:
            RunError: Training would fail, or ranks would do the same work.
        """
        began = time.perf_counter()
        if self._config.dry_batch:
            found = dry_batch(
                self._engine,
                self._losses,
                self._data,
                micro_batch,
                self._config.nonfinite is OnNonfinite.skip,
                self._config.free_memory_share,
                self._to_come,
            )
            if self._engine.world.main:
                say(found)
        return time.perf_counter() - began

    def after_step(
        self, progress: Progress, means: Mapping[str, float], micro_batches: Sequence[Any]
    ) -> Progress:
        """Look at a step that has been made.

        Args:
            progress: Before the step.
            means: What the engine said of it.
            micro_batches: This rank's.

        Returns:
            The same, with one more batch skipped if the update was not applied, and the next loss
            scale.

        Raises:
            RunError: It was not, and that is not to be passed over.
        """
        scale = progress.loss_scale
        if means["applied"]:
            above = self._spikes.meet(means["loss"])
            if above is not None and self._engine.world.main:
                say(
                    f"after {progress.samples_seen:,} samples the loss is {means['loss']:.4f}, "
                    f"{above:.0f} standard deviations above its running mean, "
                    f"{self._spikes.mean:.4f}"
                )
            return replace(progress, loss_scale=scale.after(applied=True) if scale else None)
        skipped = replace(progress, skipped=progress.skipped + 1)
        # The factor comes after the loss: it can be too large for gradients alone.
        if scale and scale.factor > 1 and math.isfinite(means["loss"]):
            overflows = progress.overflows + 1
            return replace(skipped, overflows=overflows, loss_scale=scale.after(applied=False))
        self._report(progress, means, micro_batches)
        before = progress.skipped - progress.overflows
        if self._config.nonfinite is OnNonfinite.skip and before < self._config.max_skipped:
            return skipped
        gave_up = f", as {before} before it" if before else ""
        raise Diverged(
            f"the loss is {means['loss']}, its gradient's norm {means['grad_norm']} after "
            f"{progress.samples_seen:,} samples{gave_up}; the weights are as they were before; "
            f"look at {self._out.url}/{self._name(progress)}, then lower optimizer.lr or set "
            "engine.precision=fp32 in a new out, or guards.nonfinite=skip"
        )

    def compare_ranks(self) -> None:
        """Make sure that weights that all ranks hold are the same on all; not under ZeRO-3.

        Raises:
            RunError: They are not.
        """
        if self._engine.world.size > 1 and not self._engine.weights_in_shares:
            check_digests(self._engine.gather(weights_digest(self._engine.module)))

    def _report(
        self, progress: Progress, means: Mapping[str, float], micro_batches: Sequence[Any]
    ) -> None:
        """Say, and keep in the run, which samples and layers an update failed on."""
        module = self._engine.module
        weights = [*whole_weights(self._engine)]
        with without_gathering(self._engine), pointed(module, weights):
            own = {
                "rank": self._engine.world.rank,
                "weights_not_finite": weights_not_finite(module),
                "batches": [self._diagnose(batch) for batch in micro_batches],
            }
        ranks = self._engine.gather(own)
        if not self._engine.world.main:
            return
        told = {name: plain(value) for name, value in means.items()}
        report = {"samples_seen": progress.samples_seen, **told, "ranks": ranks}
        self._out.write(self._name(progress), json.dumps(report, indent=1).encode())
        first = next(
            (one for rank in ranks for one in rank["batches"] if one["first_not_finite"]), None
        )
        where = f"first in {first['first_not_finite']}" if first else "in the gradients alone"
        say(
            f"after {progress.samples_seen:,} samples a batch's loss or gradient is not finite, "
            f"{where}; no weight was changed; its samples: {self._out.url}/{self._name(progress)}"
        )

    def _diagnose(self, batch: Any) -> dict[str, Any]:
        module = self._engine.module
        # Compiled code would call none of the hooks.
        plainly = torch.compiler.set_stance("force_eager")
        with diagnosed(module) as found, torch.no_grad(), plainly:
            losses = self._losses(module, batch, self._engine.device)["loss"]
        return {
            **found.json(),
            "samples": sample_names(self._data, batch.places.tolist()),
            "losses": [plain(loss) for loss in losses.tolist()],
        }

    @staticmethod
    def _name(progress: Progress) -> str:
        return f"nonfinite-{progress.updates:08d}.json"
