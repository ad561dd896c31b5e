"""A sweep's charts, drawn by matplotlib to PNG bytes."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from conf.space import Choices, Dimension
from launch.sweep.importance import value_of
from launch.sweep.objective import Measured
from launch.sweep.record import Outcome, Trial, folder_of, ranked
from launch.sweep.samplers import share_of

BLUE, GREY = "#2b6cb0", "#aaaaaa"
NAMED = 8  # curves that the legend names
HEIGHT = 4.2  # inches
Curves = Mapping[int, list[Measured]]


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart of a report.

    Args:
        title: What it shows, as a heading.
        height: In inches.
        draw: Draws it.
    """

    title: str
    height: float
    draw: Callable[[Axes], None]


def charts_of(
    name: str,
    trials: list[Trial],
    curves: Curves,
    swept: list[Dimension],
    shares: Mapping[str, float],
) -> list[Chart]:
    """All charts of a sweep, in order.

    Args:
        name: Of the figure that trials are compared by.
        trials: That have ended.
        curves: What each has measured; a line, if any has more than once.
        swept: What varies.
        shares: How much each setting mattered, if that is known.
    """
    if any(figure.seen for curve in curves.values() for figure in curve):
        first = [Chart("Losses", HEIGHT, lambda axes: draw_curves(axes, name, trials, curves))]
    else:
        first = [Chart(one.name, HEIGHT, partial(draw_values, name, trials, one)) for one in swept]
    between = Chart(
        "What was chosen, and what came of it",
        HEIGHT,
        lambda axes: draw_parallel(axes, name, trials, swept),
    )
    height = 0.45 * len(shares) + 1.0
    mattered = Chart("What mattered", height, lambda axes: draw_importance(axes, shares))
    return [*first, between, *([mattered] if shares else [])]


def chart_png(chart: Chart) -> bytes:
    """A chart by itself."""
    figure = Figure(figsize=(9, chart.height), layout="constrained")
    chart.draw(figure.add_subplot())
    return _png(figure)


def picture(charts: list[Chart]) -> bytes:
    """The charts in one picture."""
    heights = [chart.height for chart in charts]
    figure = Figure(figsize=(11, 1.1 * sum(heights)), layout="constrained")
    places = figure.subplots(len(charts), 1, height_ratios=heights, squeeze=False)
    for place, chart in zip(places.flat, charts, strict=True):
        chart.draw(place)
    return _png(figure)


def draw_values(name: str, trials: list[Trial], dim: Dimension, axes: Axes) -> None:
    """The figure of every complete trial, with its standard error, over one setting's value."""
    colours = _colours(trials)
    for trial in (one for one in trials if one.outcome is Outcome.complete):
        value = trial.values[dim.name]
        place = dim.values.index(value) if isinstance(dim, Choices) else float(value)
        axes.errorbar(place, trial.loss, trial.error, fmt="o", color=colours[trial.number])
    if isinstance(dim, Choices):
        axes.set_xticks(range(len(dim.values)), dim.values)
    elif dim.log:
        axes.set_xscale("log")
    axes.set_title(f"{name} of complete trials; bars are standard errors")
    axes.set_xlabel(dim.name)
    axes.grid(alpha=0.3)


def draw_curves(axes: Axes, name: str, trials: list[Trial], curves: Curves) -> None:
    """The best in colour, and named; what was pruned or failed in grey."""
    colours = _colours(trials)
    for place, trial in enumerate(ranked(trials)):
        curve = curves.get(trial.number, [])
        complete = trial.outcome is Outcome.complete
        axes.plot(
            [figure.seen for figure in curve],
            [figure.value for figure in curve],
            color=colours[trial.number],
            marker=".",
            linestyle="-" if complete else ":",
            label=folder_of(trial.number) if place < NAMED and curve else None,
            zorder=3 if complete else 2,
        )
    axes.set_title(f"{name} of every trial; dotted ones were not completed")
    axes.set_xlabel("samples seen")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(title="best first", loc="center left", bbox_to_anchor=(1, 0.5))


def draw_parallel(axes: Axes, name: str, trials: list[Trial], swept: list[Dimension]) -> None:
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
    axes.set_xticks(range(len(swept) + 1), [*(dim.name for dim in swept), name])
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


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()
