"""`ldm report` of a sweep: what was tried, what came of it, and the command to copy."""

import html
from collections import Counter

from conf.errors import UserError
from conf.groups import TrackingConfig
from conf.space import Dimension
from data.claim import claimed
from data.image import decode_image
from data.say import say
from data.storage import Prefix
from launch.html import TEMPLATE, png, table
from launch.sweep.charts import Curves, curves_chart, importance_chart, parallel_chart, picture
from launch.sweep.importance import FEWEST, importances
from launch.sweep.plan import swept_in
from launch.sweep.record import Outcome, Trial, best_command, folder_of, ranked, read_trials
from training.names import VAL_LOSS
from training.tracking.files import read_metrics
from training.tracking.wandb_run import start_wandb, wandb_image

FILE, PICTURE = "report.html", "report.png"


def report_sweep(out: Prefix, tracking: TrackingConfig) -> None:
    """Write report.html and report.png beside a sweep, and a W&B run of the same.

    Raises:
        UserError: No trial of it has ended yet.
    """
    trials, swept = read_trials(out), swept_in(out)
    if not trials:
        raise UserError(f"run={out.url}", "is a sweep of which no trial has ended", "wait for one")
    curves = {one.number: _curve(out / folder_of(one.number)) for one in trials}
    shares = importances(trials, swept)
    image = picture(trials, curves, swept, shares)
    out.write(PICTURE, image)
    out.write(FILE, page(trials, curves, swept, shares, out.url).encode())
    run = start_wandb(out / "report", tracking, claimed(out) or {}, folder=out.local)
    if run is not None:
        run.log({"report": wandb_image(decode_image(image), "report")})
        run.finish()
    say(f"report: wrote {out.url}/{FILE} and {out.url}/{PICTURE}")


def page(
    trials: list[Trial],
    curves: Curves,
    swept: list[Dimension],
    shares: dict[str, float],
    url: str,
) -> str:
    """The report as one HTML page that needs nothing else."""
    best, *_ = order = ranked(trials)
    counts = Counter(one.outcome.value for one in trials)
    ended = ", ".join(f"{count} {name}" for name, count in counts.items())
    names = [dim.name for dim in swept]
    head = ("place", "trial", *names, VAL_LOSS, "outcome", "seconds", "what went wrong")
    command = "<p>No trial was completed.</p>"
    if best.outcome is Outcome.complete:
        told = f"Trial {folder_of(best.number)}, {VAL_LOSS} {best.loss:.4f}, as a run of its own:"
        copied = html.escape(best_command(best, f"{url.rstrip('/')}/best"))
        command = f"<p>{told}</p><pre>{copied}</pre>"
    parts = [
        f"<p>A sweep of {html.escape(', '.join(names))}: {ended}.</p>",
        "<h2>The best</h2>",
        command,
        "<h2>Trials</h2>",
        table(head, [_row(place, one, names) for place, one in enumerate(order, 1)]),
        "<h2>Losses</h2>",
        png(curves_chart(trials, curves), "validation loss of every trial"),
        "<h2>What was chosen, and what came of it</h2>",
        png(parallel_chart(trials, swept), "parallel coordinates"),
        "<h2>What mattered</h2>",
        png(importance_chart(shares), "importance of each setting")
        if shares
        else f"<p>Says something of {FEWEST} complete trials or more.</p>",
    ]
    return TEMPLATE.format(body="\n".join(parts))


def _row(place: int, trial: Trial, names: list[str]) -> tuple[str, ...]:
    loss = "" if trial.loss is None else f"{trial.loss:.4f}"
    values = (trial.values[name] for name in names)
    ended = (trial.outcome.value, f"{trial.seconds:,.0f}", "; ".join(trial.failures))
    return (str(place), folder_of(trial.number), *values, loss, *ended)


def _curve(run: Prefix) -> tuple[list[int], list[float]]:
    lines = [line for line in read_metrics(run) if VAL_LOSS in line]
    return [line["samples_seen"] for line in lines], [line[VAL_LOSS] for line in lines]
