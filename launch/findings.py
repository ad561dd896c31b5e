"""What a report shows: a run and, by the URLs in its manifests, what it came from."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.image import decode_image
from data.manifest import Manifest, load_manifest
from data.progress import read_summary
from data.storage import Prefix, open_prefix
from training.evaluate import RECONSTRUCTIONS, RESULT
from training.generate import PROMPTS
from training.loop import read_run, run_config
from training.track import read_metrics


@dataclass(frozen=True, slots=True)
class Samples:
    """The images of one `ldm sample` and their prompts."""

    name: str
    prompts: list[str]
    images: list[NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that a report shows.

    Args:
        run: What the run is.
        latents: The manifest of its latents.
        stages: Rows of (stage, images, seconds, images per second, peak memory in bytes).
        curves: Lines of metrics of each training, by name.
        samples: From the run's `samples/`.
        evaluation: What `ldm evaluate` measured, or None.
        reconstructions: Its picture, or None.
    """

    run: dict[str, Any]
    latents: Manifest
    stages: list[tuple[str, int, float, float, int]]
    curves: dict[str, list[dict[str, Any]]]
    samples: list[Samples]
    evaluation: dict[str, Any] | None
    reconstructions: NDArray[np.uint8] | None


def collect(out: Prefix) -> Findings:
    """Read a run and, by the URLs that its manifests keep, what it came from."""
    run = read_run(out, "train")
    latents_at = open_prefix(run_config(out)["data"]["url"], "data.url of the run")
    latents = load_manifest(latents_at, "latents")
    trained = latents.origins["autoencoder"].get("url")  # one that others have trained has no run
    autoencoder = open_prefix(trained, "autoencoder.url of the run") if trained else None
    images = open_prefix(latents.origins["images"], "data.url of the cache")
    samples = [name for name in out.names("samples") if out.exists(f"samples/{name}/{PROMPTS}")]
    places = [images, *([autoencoder] if autoencoder else []), latents_at, out]
    places += [out / f"samples/{name}" for name in samples] + [out / "evaluation"]
    evaluated = out.exists(f"evaluation/{RESULT}")
    return Findings(
        run=run,
        latents=latents,
        stages=[_stage(place) for place in places if read_summary(place)],
        curves={
            "autoencoder": read_metrics(autoencoder) if autoencoder else [],
            "denoiser": read_metrics(out),
        },
        samples=[_samples(out / f"samples/{name}") for name in samples],
        evaluation=json.loads(out.read(f"evaluation/{RESULT}")) if evaluated else None,
        reconstructions=decode_image(out.read(f"evaluation/{RECONSTRUCTIONS}"))
        if evaluated
        else None,
    )


def _stage(place: Prefix) -> tuple[str, int, float, float, int]:
    """One row from the parts that one or several processes recorded."""
    parts = [part for part in read_summary(place) if part["samples"]] or read_summary(place)
    images = sum(part["samples"] for part in parts)
    seconds = sum(part["seconds"] for part in parts)
    memory = max(part["peak_memory"] for part in parts)
    return parts[0]["command"], images, seconds, images / max(seconds, 1e-9), memory


def _samples(place: Prefix) -> Samples:
    prompts = json.loads(place.read(PROMPTS))["prompts"]
    name = place.url.rsplit("/", 1)[-1]
    return Samples(
        name, prompts, [decode_image(place.read(f"{i:05d}.png")) for i in range(len(prompts))]
    )
