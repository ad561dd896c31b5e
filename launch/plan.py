"""`ldm plan train` and `ldm plan cache`: what a command would take, before it is started."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from conf.schema import PlanCacheCommand, PlanTrainCommand
from training.device import together_on
from training.plan.cache import CachePlan, plan_cache
from training.plan.denoiser import Denoiser
from training.plan.fed import fed_by
from training.plan.machine import Machine
from training.plan.refuse import refuse, require_room
from training.plan.train import EngineRow, TrainPlan, plan_train

Facts = Sequence[tuple[str, str]]


def plan_training(config: PlanTrainCommand) -> None:
    """Print what a training would take.

    Raises:
        UserError: It cannot run; the plan is printed before that.
    """
    is_gpu = config.plan.gpu is not None or torch.cuda.is_available()
    together = together_on("cuda" if is_gpu else "cpu", config.engine.channels_last)
    layout = torch.channels_last if together else torch.contiguous_format
    fed = fed_by(config.data, config.plan)
    denoiser = Denoiser(config.unet, fed, config.diffusion.learned_variance, layout)
    plan = plan_train(config, denoiser)
    if config.plan.json:
        _print_json(plan)
    else:
        console = Console()
        console.print(_facts("ldm train would take", train_facts(plan)))
        console.print(engine_table(plan))
        _print_remarks(console, plan.remarks)
    refuse(config, plan, denoiser)


def plan_caching(config: PlanCacheCommand) -> None:
    """Print what a cache would take.

    Raises:
        UserError: There is no room for it; the plan is printed before that.
    """
    plan = plan_cache(config)
    if config.plan.json:
        _print_json(plan)
    else:
        console = Console()
        console.print(_facts("ldm cache would take", cache_facts(plan)))
        _print_remarks(console, plan.remarks)
    if plan.bytes is not None:
        require_room(config.out, int(plan.bytes))


def train_facts(plan: TrainPlan) -> Facts:
    """A training's figures in words."""
    epochs = "" if plan.epochs is None else f", {plan.epochs:,.1f} epochs"
    batch = (
        f"{plan.batch_size:,} = {plan.micro_batch_size:,} a rank x {plan.ranks:,} ranks x "
        f"{plan.accumulation:,} accumulated"
    )
    sent = f"{size(plan.sent_bytes)} sent by each rank in a step, whose time is not counted above"
    images = plan.batch_size / plan.step_seconds
    return (
        ("denoiser", f"{plan.parameters / 1e6:,.1f}M parameters"),
        ("batch", batch),
        ("steps", f"{plan.steps:,} for {plan.samples:,} samples{epochs}"),
        ("FLOPs", f"{plan.flops / 1e9:,.4g} G an image; a step does {plan.forwards} x that"),
        ("each rank", device(plan.machine)),
        ("speed", f"{images:,.0f} images/s, {duration(plan.step_seconds)} a step"),
        ("time", duration(plan.hours * 3600) + price(plan.dollars)),
        ("dataset", "not known" if plan.dataset_bytes is None else size(plan.dataset_bytes)),
        ("reading", f"{size(plan.read_bytes)}/s from the store, all ranks together"),
        ("exchange", sent if plan.ranks > 1 else "none"),
        (
            "checkpoints",
            f"{size(plan.checkpoint_bytes)} each, {plan.checkpoints:,} kept: "
            f"{size(plan.checkpoint_bytes * plan.checkpoints)}; "
            f"{duration(plan.checkpoint_seconds)} to write one, from "
            f"{size(plan.staged_bytes)} of host memory a rank",
        ),
    )


def cache_facts(plan: CachePlan) -> Facts:
    """A cache's figures in words."""
    known = plan.images is not None and plan.hours is not None and plan.bytes is not None
    images = f"{plan.images:,}" if known else "not known: give plan.samples"
    return (
        ("images", images),
        ("FLOPs", f"{plan.flops / 1e9:,.4g} G an image"),
        ("each rank", f"{device(plan.machine)}; {plan.ranks:,} in all"),
        ("speed", f"{plan.images_per_second:,.0f} images/s"),
        ("writes", f"{size(plan.sample_bytes)} a sample" + f", {size(plan.bytes)}" * known),
        ("time", duration(plan.hours * 3600) + price(plan.dollars) if known else "not known"),
    )


def engine_table(plan: TrainPlan) -> Table:
    """What a rank needs by engine; an arrow is at the chosen one."""
    unit, name = (1e9, "GB") if max(row.total for row in plan.engines) >= 1e9 else (1e6, "MB")
    title = f"{name} a rank at the most, of {plan.usable / unit:,.1f} on {plan.machine.name}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("  engine")
    for column in ("weights", "average", "grads", "Adam", "buffers", "activ.", "total", "host"):
        table.add_column(column, justify="right")
    table.add_column("fits")

    def cell(count: int) -> str:
        return f"{count / unit:,.2f}" if count else "-"

    for row in sorted(plan.engines, key=lambda row: (row.kind.value, row.offload.optimizer)):
        state, chosen = row.state, row is plan.chosen
        parts = (state.weights, state.average, state.gradients, state.moments, state.buffers)
        counts = (*parts, row.activations, row.total, state.host)
        fits = "yes" if row.total <= plan.usable else "no"
        name = ("> " if chosen else "  ") + _short(row)
        table.add_row(name, *map(cell, counts), fits, style="bold" if chosen else "")
    return table


def _short(row: EngineRow) -> str:
    """An engine and what of it is in host memory."""
    moved = row.offload.optimizer + row.offload.parameters
    return row.kind.value + ("", " + host", " + host all")[moved]


def device(machine: Machine) -> str:
    """What a rank computes on, in words."""
    return f"{machine.name}, {machine.peak}, MFU {machine.mfu:.1%} ({machine.mfu_source})"


def size(count: float) -> str:
    """Bytes in words, by powers of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:,.1f} hours"


def price(dollars: float | None) -> str:
    """A cost in words; none without a price."""
    return "" if dollars is None else f", ${dollars:,.2f}"


def _facts(title: str, facts: Facts) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, fact in facts:
        table.add_row(name, fact)
    return table


def _print_remarks(console: Console, remarks: Sequence[str]) -> None:
    for remark in remarks:
        console.print(f"Assumed: {remark}.", markup=False, highlight=False)


def _print_json(plan: TrainPlan | CachePlan) -> None:
    def plain(value: Any) -> Any:
        assert isinstance(value, Enum), value
        return value.value

    print(json.dumps(asdict(plan), default=plain, indent=1))
