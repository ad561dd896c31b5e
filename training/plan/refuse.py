"""What makes a plan impossible, said with what would help."""

import shutil
from bisect import bisect_right

from conf.errors import UserError
from conf.schema import PlanTrainCommand
from data.storage import open_prefix
from training.plan.denoiser import Denoiser
from training.plan.train import TrainPlan

MOST_ENGINES = 3  # that a line of refusal names


def refuse(config: PlanTrainCommand, plan: TrainPlan, denoiser: Denoiser) -> None:
    """Refuse a plan that cannot run.

    Raises:
        UserError: The engine needs more memory than there is, `out` has no room for its
            checkpoints, or `cluster.minutes` for a step and two of them.
    """
    if plan.chosen.total > plan.usable:
        raise UserError(
            plan.chosen.settings,
            f"needs {plan.chosen.total / 1e9:,.2f} GB a rank, {plan.machine.name} has "
            f"{plan.usable / 1e9:,.2f} to give",
            remedies(config, plan, denoiser),
        )
    there = plan.checkpoint_bytes * (plan.checkpoints + 1) + plan.snapshot_bytes
    require_room(config.out, there)
    needed = (plan.step_seconds + 2 * plan.checkpoint_seconds) / 60
    if config.cluster.minutes is not None and config.cluster.minutes < needed:
        raise UserError(
            f"cluster.minutes={config.cluster.minutes:g}",
            f"is over before a step ({plan.step_seconds:,.0f} s) is done, with room for two "
            f"checkpoints ({plan.checkpoint_seconds:,.0f} s each)",
            f"give {needed * 2:,.1f} or more",
        )


def remedies(config: PlanTrainCommand, plan: TrainPlan, denoiser: Denoiser) -> str:
    """Settings that would fit, each by itself."""
    engine, micro, share = config.engine, plan.micro_batch_size, plan.batch_size // plan.ranks
    fitting = [row for row in plan.engines if row.total <= plan.usable]
    fitting.sort(key=lambda row: row.state.host)  # host memory is slow: only where all else fails
    found = [row.settings for row in fitting[:MOST_ENGINES]]
    smaller = [size for size in range(1, micro + 1) if share % size == 0]
    ways = {engine.recompute: "", True: "" if engine.recompute else "engine.recompute=true "}
    for recompute, given in ways.items():

        def needed(size: int, recompute: bool = recompute) -> int:
            kept = denoiser.kept(size, engine.precision, plan.machine.kind, recompute)
            return plan.chosen.state.total + kept

        if most := bisect_right(smaller, plan.usable, key=needed):
            size = smaller[most - 1]
            found.append(given + (f"micro_batch_size={size}" if size < micro else ""))
    if not found:
        return "take a GPU with more memory, more ranks, or a smaller unet"
    return "choose " + ", or ".join(one.strip() for one in found)


def require_room(url: str, needed: int) -> None:
    """Refuse a local folder without room; it need not be there yet.

    Raises:
        UserError: The disk has less than so many bytes free.
    """
    local = open_prefix(url, "out").local if url else None
    if local is None:
        return
    there = next(folder for folder in (local, *local.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"out={url}",
            f"{free / 1e9:,.1f} GB are free and {needed / 1e9:,.1f} GB are needed",
            "make room, choose another place, or keep fewer checkpoints",
        )
