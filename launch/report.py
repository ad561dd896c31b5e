"""`ldm report`: a run, from images to samples, as an HTML page, a picture and a W&B run."""

import base64
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
from training.evaluate import describe
from training.tracking.wandb_run import start_wandb, wandb_image, wandb_key

PAGE = "report.html"
PICTURE = "report.png"


def report(config: ReportCommand) -> None:
    """Write report.html and report.png beside a run, and a W&B run of the same.

    Raises:
        UserError: There is no such run.
    """
    out = open_prefix(config.run, "run")
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
        _png(loss_chart(findings.curves)),
        *([_png(bins)] if (bins := bins_chart(findings.curves["denoiser"])) else []),
        "<h2>Stages</h2>",
        _table(
            ("stage", "images", "seconds", "images/s", "peak memory"),
            [
                (name, f"{count:,}", f"{seconds:,.1f}", f"{rate:,.1f}", f"{memory / 1e9:.2f} GB")
                for name, count, seconds, rate, memory in findings.stages
            ],
        ),
        _png(rate_chart(findings.stages)),
        "<h2>The run</h2>",
        _table(("what", "value"), facts),
        "<details><summary>settings</summary>",
        f"<pre>{html.escape(json.dumps(findings.run, indent=1))}</pre></details>",
        "<details><summary>all in one picture</summary>",
        _png(image),
        "</details>",
    ]
    return _PAGE.format(body="\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Latent Foundry report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }}
h1 {{ margin-bottom: 0; }} h2 {{ margin-top: 2.2rem; border-bottom: 1px solid #ddd; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .25rem .9rem .25rem 0; text-align: left;
  overflow-wrap: anywhere; }}
td:not(:first-child) {{ font-variant-numeric: tabular-nums; }}
pre {{ background: #f5f5f5; padding: .8rem; overflow-x: auto; }}
img {{ max-width: 100%; height: auto; }}
.gallery {{ display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); }}
.gallery img {{ width: 100%; image-rendering: pixelated; border: 1px solid #eee; }}
figure {{ margin: 0; }} figcaption {{ font-size: .85rem; color: #444; }}
</style></head><body>
<h1>Latent Foundry report</h1>
{body}
</body></html>
"""


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
    return _png(encode_png(image), alt)


def _png(content: bytes, alt: str = "") -> str:
    encoded = base64.b64encode(content).decode()
    return f'<img alt="{alt}" src="data:image/png;base64,{encoded}">'


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def cells(tag: str, row: tuple[str, ...]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    return f"<table>{cells('th', head)}{''.join(cells('td', row) for row in rows)}</table>"


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
