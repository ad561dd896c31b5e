"""A sweep's charts, drawn by matplotlib to PNG bytes."""

import io
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from conf.space import Choices, Dimension
from launch.sweep.importance import value_of
from launch.sweep.record import Outcome, Trial, folder_of, ranked
from launch.sweep.samplers import share_of
from training.names import VAL_LOSS

BLUE, GREY = "#2b6cb0", "#aaaaaa"
NAMED = 8  # curves that the legend names
Curves = Mapping[int, tuple[list[int], list[float]]]


def curves_chart(trials: list[Trial], curves: Curves) -> bytes:
    """The validation loss of every trial over the samples seen."""
    return _alone(lambda axes: draw_curves(axes, trials, curves), 4.2)


def parallel_chart(trials: list[Trial], swept: list[Dimension]) -> bytes:
    """One line a trial through all that varies, to its loss."""
    return _alone(lambda axes: draw_parallel(axes, trials, swept), 4.2)


def importance_chart(shares: Mapping[str, float]) -> bytes:
    """How much each setting mattered."""
    return _alone(lambda axes: draw_importance(axes, shares), 0.45 * len(shares) + 1.0)


def picture(
    trials: list[Trial], curves: Curves, swept: list[Dimension], shares: Mapping[str, float]
) -> bytes:
    """The charts in one picture."""
    parts: list[tuple[float, Callable[[Axes], None]]] = [
        (4.2, lambda axes: draw_curves(axes, trials, curves)),
        (4.2, lambda axes: draw_parallel(axes, trials, swept)),
    ]
    if shares:
        parts.append((0.45 * len(shares) + 1.0, lambda axes: draw_importance(axes, shares)))
    heights = [height for height, _ in parts]
    figure = Figure(figsize=(11, 1.1 * sum(heights)), layout="constrained")
    places = figure.subplots(len(parts), 1, height_ratios=heights, squeeze=False)
    for place, (_, draw) in zip(places.flat, parts, strict=True):
        draw(place)
    return _png(figure)


def draw_curves(axes: Axes, trials: list[Trial], curves: Curves) -> None:
    """The best in colour, and named; what was pruned or failed in grey."""
    colours = _colours(trials)
    for place, trial in enumerate(ranked(trials)):
        seen, losses = curves.get(trial.number, ([], []))
        complete = trial.outcome is Outcome.complete
        axes.plot(
            seen,
            losses,
            color=colours[trial.number],
            marker=".",
            linestyle="-" if complete else ":",
            label=folder_of(trial.number) if place < NAMED and seen else None,
            zorder=3 if complete else 2,
        )
    axes.set_title(f"{VAL_LOSS} of every trial; dotted ones were not completed")
    axes.set_xlabel("samples seen")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(title="best first", loc="center left", bbox_to_anchor=(1, 0.5))


def draw_parallel(axes: Axes, trials: list[Trial], swept: list[Dimension]) -> None:
    """An axis for each that varies and one for the loss; the best trial's line is the thickest."""
    colours = _colours(trials)
    complete = [one for one in trials if one.outcome is Outcome.complete]
    losses = [one.loss for one in complete if one.loss is not None]
    low, high = (min(losses), max(losses)) if losses else (0.0, 1.0)
    best = ranked(trials)[0].number if losses else None
    for trial, loss in zip(complete, losses, strict=True):
        heights = [_height(dim, trial.values[dim.name]) for dim in swept]
        heights.append((loss - low) / (high - low) if high > low else 0.5)
        width = 3.0 if trial.number == best else 1.2
        axes.plot(range(len(heights)), heights, color=colours[trial.number], linewidth=width)
    for place, dim in enumerate(swept):
        ends = dim.values if isinstance(dim, Choices) else (f"{dim.low:g}", f"{dim.high:g}")
        for written in ends:
            _mark(axes, place, _height(dim, written), written)
    for height, loss in ((0.0, low), (1.0, high)) if losses else ():
        _mark(axes, len(swept), height, f"{loss:.4f}")
    axes.set_xticks(range(len(swept) + 1), [*(dim.name for dim in swept), VAL_LOSS])
    axes.set_yticks([])
    axes.set_xlim(-0.3, len(swept) + 0.5)
    axes.set_ylim(-0.08, 1.08)
    axes.grid(alpha=0.5, axis="x")
    axes.set_title("complete trials: what was chosen, and what came of it; the best is thick")


def draw_importance(axes: Axes, shares: Mapping[str, float]) -> None:
    """One bar a setting, the most important on top."""
    names = list(shares)[::-1]
    bars = axes.barh(names, [shares[name] for name in names], color=BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_title("what decided whether a trial is among the best quarter (PED-ANOVA)")
    axes.margins(x=0.15)


def _mark(axes: Axes, place: int, height: float, text: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}
    axes.text(place + 0.03, height, text, fontsize=8, va="center", bbox=box, zorder=4)


def _height(dim: Dimension, written: str) -> float:
    """Where on its axis a value lies, from 0 to 1."""
    if isinstance(dim, Choices):
        return dim.values.index(written) / max(1, len(dim.values) - 1)
    return share_of(dim, float(value_of(dim, written)))


def _colours(trials: list[Trial]) -> dict[int, Any]:
    """From the best, dark, to the worst, bright; grey without a result."""
    order = [one for one in ranked(trials) if one.outcome is Outcome.complete]
    shades = colormaps["viridis"]
    found: dict[int, Any] = {one.number: GREY for one in trials}
    for place, one in enumerate(order):
        found[one.number] = shades(0.95 * place / max(1, len(order) - 1))
    return found


def _alone(draw: Callable[[Axes], None], height: float) -> bytes:
    figure = Figure(figsize=(9, height), layout="constrained")
    draw(figure.add_subplot())
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()
