"""The report's charts, drawn by matplotlib to PNG bytes."""

import io
import textwrap
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.findings import Findings
from training.validate import BIN, LOSS

Curves = dict[str, list[dict[str, Any]]]
Stages = list[tuple[str, int, float, float, int]]
BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#888888"


def loss_chart(curves: Curves) -> bytes:
    """The loss of each training over the samples seen."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for i, (name, lines) in enumerate(curves.items(), 1):
        draw_loss(figure.add_subplot(1, len(curves), i), name, lines)
    return _png(figure)


def bins_chart(lines: list[dict[str, Any]]) -> bytes | None:
    """The last validation's loss by equal parts of the times; None if there was none."""
    found = [line for line in lines if LOSS in line]
    if not found:
        return None
    bins = {int(k.removeprefix(BIN)): v for k, v in found[-1].items() if k.startswith(BIN)}
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.bar([*bins], [*bins.values()], color=BLUE)
    axes.set_xticks([*bins])
    axes.set_title(f"held-out loss by time, after {found[-1]['samples_seen']:,} samples")
    axes.set_xlabel("part of the times, from the least noise to the most")
    axes.grid(alpha=0.3, axis="y")
    return _png(figure)


def rate_chart(stages: Stages) -> bytes:
    """Images per second of every stage."""
    figure = Figure(figsize=(9, 0.45 * len(stages) + 0.8), layout="constrained")
    draw_rates(figure.add_subplot(), stages)
    return _png(figure)


def picture(findings: Findings) -> bytes:
    """The whole report in one picture; what the run has not made takes no room."""
    parts: list[tuple[float, Callable[[Any], None]]] = []
    if findings.samples:
        parts.append((4.4, lambda part: _draw_samples(part, findings)))
    elif findings.grid is not None:
        title = "Samples of the averaged weights, as the training made them last"
        parts.append((4.4, lambda part: _draw_image(part, findings.grid, title)))
    if findings.reconstructions is not None:
        title_of = "Held-out images, each row above its reconstructions"
        parts.append((4.2, lambda part: _draw_image(part, findings.reconstructions, title_of)))
    parts.append((3.2, lambda part: _draw_figures(part, findings)))
    heights = [height for height, _ in parts]
    figure = Figure(figsize=(11, 1.1 * sum(heights)), layout="constrained")
    places = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)
    for place, (_, draw) in zip(places.flat, parts, strict=True):
        draw(place)
    return _png(figure)


def _draw_image(figure: Any, image: Any, title: str) -> None:
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_title(title)
    axes.imshow(image, interpolation="nearest")


def _draw_figures(figure: Any, findings: Findings) -> None:
    left, centre, right = figure.subplots(1, 3)
    draw_loss(left, "autoencoder", findings.curves["autoencoder"])
    draw_loss(centre, "denoiser", findings.curves["denoiser"])
    draw_rates(right, findings.stages)


def draw_loss(axes: Axes, name: str, lines: list[dict[str, Any]]) -> None:
    """One training's loss, as logged and smoothed."""
    seen, losses = _series(lines, "loss")
    axes.plot(seen, losses, color=GREY, alpha=0.5, linewidth=0.8)
    axes.plot(seen, _smoothed(losses), color=BLUE)
    held_out = _series(lines, LOSS)
    if held_out[0]:
        axes.plot(*held_out, color=ORANGE, marker=".", label="held out, averaged weights")
        axes.legend()
    axes.set_title(f"loss of the {name}")
    axes.set_xlabel("samples seen")
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")


def draw_rates(axes: Axes, stages: Stages) -> None:
    """One bar a stage."""
    names = [stage[0] for stage in stages][::-1]
    rates = [stage[3] for stage in stages][::-1]
    bars = axes.barh(range(len(names)), rates, color=BLUE)
    axes.set_yticks(range(len(names)), names)
    axes.bar_label(bars, labels=[f"{rate:,.0f}" for rate in rates], padding=3)
    axes.set_title("images/s")
    axes.margins(x=0.2)


def _draw_samples(figure: Any, findings: Findings) -> None:
    shown = [
        (prompt, image)
        for samples in findings.samples[:1]
        for prompt, image in zip(samples.prompts, samples.images, strict=True)
    ][:8]
    figure.suptitle("Samples")
    for axes, (prompt, image) in zip(
        figure.subplots(2, 4, squeeze=False).flat, shown, strict=False
    ):
        axes.imshow(image, interpolation="nearest")
        axes.set_title("\n".join(textwrap.wrap(prompt, 24)), fontsize=9)
    for axes in figure.axes:
        axes.set_axis_off()


def _series(lines: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """A figure over the samples seen, of the lines that have it."""
    found = [line for line in lines if name in line]
    return [line["samples_seen"] for line in found], [line[name] for line in found]


def _smoothed(values: list[float]) -> list[float]:
    """An exponential average, with the start corrected for."""
    result, average, weight = [], 0.0, 0.0
    for value in values:
        average, weight = 0.9 * average + 0.1 * value, 0.9 * weight + 0.1
        result.append(average / weight)
    return result


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()
