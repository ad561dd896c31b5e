"""`ldm report`: a run, from images to samples, as an HTML page, a picture and a W&B run."""

import html
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.schema import ReportCommand
from data.image import decode_image, encode_png
from data.say import say
from data.storage import Prefix, open_prefix
from launch.charts import bins_chart, loss_chart, picture, rate_chart
from launch.findings import Findings, Samples, collect
from launch.html import TEMPLATE, png, table
from launch.sweep.plan import objective_in
from training.evaluate import describe
from training.tracking.wandb_run import start_wandb, wandb_image, wandb_key

PAGE = "report.html"
PICTURE = "report.png"


def report(config: ReportCommand) -> None:
    """Write report.html and report.png beside a run or a sweep, and a W&B run of the same.

    Raises:
        UserError: There is no such run.
    """
    out = open_prefix(config.run, "run")
    if objective := objective_in(out):
        from launch.sweep.page import report_sweep  # Optuna takes a second that a run needs not

        report_sweep(out, objective, config.tracking)
        return
    findings = collect(out)
    image = picture(findings)
    out.write(PICTURE, image)
    out.write(PAGE, page(findings, image).encode())
    _track(out, config, findings, image)
    for name, count, seconds, rate, memory in findings.stages:
        say(
            f"{name:>12}: {count:>8,} images in {seconds:>7,.1f} s, {rate:>7,.1f} images/s, "
            f"{memory / 1e9:.2f} GB"
        )
    if findings.evaluation:
        say(describe(findings.evaluation))
    say(f"report: wrote {out.url}/{PAGE} and {out.url}/{PICTURE}")


def page(findings: Findings, image: bytes) -> str:
    """The report as one HTML page that needs nothing else."""
    spec, text = findings.meaning.latents, findings.meaning.text
    seen = max((line["samples_seen"] for line in findings.curves["denoiser"]), default=0)
    facts = [
        ("samples seen", f"{seen:,}"),
        ("images", f"{findings.data.samples:,}"),
        ("latents", f"{spec.channels} x {spec.size} x {spec.size}, {spec.downsampling}x smaller"),
        (f"{findings.data.kind}' fingerprint", findings.data.fingerprint),
        ("autoencoder", spec.autoencoder),
        ("text encoder", f"{text.encoder} (width {text.width})"),
    ]
    parts = [
        "<h2>Samples</h2>",
        *(_gallery(samples) for samples in findings.samples),
        *_on_the_way(findings),
        "<h2>Held-out images and their reconstructions</h2>",
        "<p>Rows in turn: originals, then what the autoencoder makes of them.</p>",
        _image(findings.reconstructions)
        if findings.reconstructions is not None
        else "<p>None.</p>",
        "<h2>What was learned, on held-out images</h2>",
        f"<pre>{html.escape(describe(findings.evaluation))}</pre>"
        if findings.evaluation
        else "<p>Not measured: run <code>ldm evaluate</code>.</p>",
        "<h2>Loss</h2>",
        png(loss_chart(findings.curves)),
        *([png(bins)] if (bins := bins_chart(findings.curves["denoiser"])) else []),
        "<h2>Stages</h2>",
        table(
            ("stage", "images", "seconds", "images/s", "peak memory"),
            [
                (name, f"{count:,}", f"{seconds:,.1f}", f"{rate:,.1f}", f"{memory / 1e9:.2f} GB")
                for name, count, seconds, rate, memory in findings.stages
            ],
        ),
        png(rate_chart(findings.stages)),
        "<h2>The run</h2>",
        table(("what", "value"), facts),
        "<details><summary>settings</summary>",
        f"<pre>{html.escape(json.dumps(findings.run, indent=1))}</pre></details>",
        "<details><summary>all in one picture</summary>",
        png(image),
        "</details>",
    ]
    return TEMPLATE.format(body="\n".join(parts))


def _on_the_way(findings: Findings) -> list[str]:
    if findings.grid is None:
        return []
    return ["<h2>The last sample grid of the training</h2>", _image(findings.grid)]


def _gallery(samples: Samples) -> str:
    figures = [
        f"<figure>{_image(image, html.escape(prompt))}"
        f"<figcaption>{html.escape(prompt)}</figcaption></figure>"
        for prompt, image in zip(samples.prompts, samples.images, strict=True)
    ]
    return f'<div class="gallery">{"".join(figures)}</div>'


def _image(image: NDArray[np.uint8], alt: str = "") -> str:
    return png(encode_png(image), alt)


def _track(out: Prefix, config: ReportCommand, findings: Findings, image: bytes) -> None:
    """The same in W&B, beside the training runs' own."""
    key = wandb_key(config.tracking)
    run = start_wandb(out / "report", config.tracking, findings.run, folder=out.local, key=key)
    if run is None:
        return
    content: dict[str, Any] = {"report": wandb_image(decode_image(image), "report")}
    if findings.reconstructions is not None:
        content["reconstructions"] = wandb_image(findings.reconstructions, "originals above")
    for samples in findings.samples:
        pairs = zip(samples.images, samples.prompts, strict=True)
        content[f"samples/{samples.name}"] = [wandb_image(image, prompt) for image, prompt in pairs]
    for name, lines in findings.curves.items():
        run.define_metric(f"{name}/*", step_metric=f"{name}/samples_seen")
        for line in lines:
            run.log({f"{name}/{key}": value for key, value in line.items()})
    run.log(content)
    for name, images, seconds, rate, memory in findings.stages:
        figures = {
            "images": images,
            "seconds": seconds,
            "images_per_second": rate,
            "peak_memory": memory,
        }
        run.summary.update({f"stages/{name}/{key}": value for key, value in figures.items()})
    run.summary.update({"evaluation": findings.evaluation or "not measured"})
    run.finish()
