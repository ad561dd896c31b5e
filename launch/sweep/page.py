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
from launch.sweep.charts import Chart, chart_png, charts_of, picture
from launch.sweep.importance import FEWEST, importances
from launch.sweep.objective import Objective
from launch.sweep.plan import swept_in
from launch.sweep.record import Outcome, Trial, best_command, folder_of, ranked, read_trials
from training.tracking.wandb_run import start_wandb, wandb_image, wandb_key

FILE, PICTURE = "report.html", "report.png"


def report_sweep(out: Prefix, objective: Objective, tracking: TrackingConfig) -> None:
    """Write report.html and report.png beside a sweep, and a W&B run of the same.

    Raises:
        UserError: No trial of it has ended yet, or W&B is asked for and has no key.
    """
    key = wandb_key(tracking)
    trials, swept = read_trials(out), swept_in(out)
    if not trials:
        raise UserError(f"run={out.url}", "is a sweep of which no trial has ended", "wait for one")
    curves = {one.number: objective.read(out / folder_of(one.number)) for one in trials}
    shares = importances(trials, swept)
    charts = charts_of(objective.name, trials, curves, swept, shares)
    image = picture(charts)
    out.write(PICTURE, image)
    out.write(FILE, page(objective, trials, charts, swept, out.url).encode())
    run = start_wandb(out / "report", tracking, claimed(out) or {}, folder=out.local, key=key)
    if run is not None:
        run.log({"report": wandb_image(decode_image(image), "report")})
        run.finish()
    say(f"report: wrote {out.url}/{FILE} and {out.url}/{PICTURE}")


def page(
    objective: Objective,
    trials: list[Trial],
    charts: list[Chart],
    swept: list[Dimension],
    url: str,
) -> str:
    """The report as one HTML page that needs nothing else."""
    best, *_ = order = ranked(trials)
    counts = Counter(one.outcome.value for one in trials)
    ended = ", ".join(f"{count} {name}" for name, count in counts.items())
    names = [dim.name for dim in swept]
    head = ("place", "trial", *names, objective.name, "outcome", "seconds", "what went wrong")
    command = "<p>No trial was completed.</p>"
    if best.outcome is Outcome.complete:
        told = (
            f"Trial {folder_of(best.number)}, {objective.name} {best.figure}, as a run of its own:"
        )
        copied = html.escape(best_command(objective, best, f"{url.rstrip('/')}/best"))
        command = f"<p>{told}</p><pre>{copied}</pre>"
    parts = [
        f"<p>A sweep of {html.escape(', '.join(names))}: {ended}.</p>",
        "<h2>The best</h2>",
        command,
        "<h2>Trials</h2>",
        table(head, [_row(place, one, names) for place, one in enumerate(order, 1)]),
    ]
    for chart in charts:
        title = html.escape(chart.title)
        parts += [f"<h2>{title}</h2>", png(chart_png(chart), title)]
    if counts[Outcome.complete.value] < FEWEST:
        parts.append(f"<p>What mattered is told of {FEWEST} complete trials or more.</p>")
    return TEMPLATE.format(body="\n".join(parts))


def _row(place: int, trial: Trial, names: list[str]) -> tuple[str, ...]:
    values = (trial.values[name] for name in names)
    ended = (trial.outcome.value, f"{trial.seconds:,.0f}", "; ".join(trial.failures))
    return (str(place), folder_of(trial.number), *values, trial.figure, *ended)
