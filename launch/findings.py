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
from data.stream import open_dataset
from training.evaluate import RECONSTRUCTIONS
from training.generate import PROMPTS
from training.grids import FOLDER
from training.meaning import Meaning, kept_meaning, meaning_of
from training.names import EVALUATION
from training.run import read_run, run_config
from training.tracking.files import read_metrics


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
        data: The manifest of its latents, or of the images that it encoded itself.
        meaning: What the latents and captions mean.
        stages: Rows of (stage, images, seconds, images per second, peak memory in bytes).
        curves: Lines of metrics of each training, by name.
        samples: From the run's `samples/`.
        evaluation: What `ldm evaluate` measured, or None.
        reconstructions: Its picture, or None.
        grid: The last sample grid that the training made, or None.
    """

    run: dict[str, Any]
    data: Manifest
    meaning: Meaning
    stages: list[tuple[str, int, float, float, int]]
    curves: dict[str, list[dict[str, Any]]]
    samples: list[Samples]
    evaluation: dict[str, Any] | None
    reconstructions: NDArray[np.uint8] | None
    grid: NDArray[np.uint8] | None = None


def collect(out: Prefix) -> Findings:
    """Read a run and, by the URLs that its manifests keep, what it came from."""
    run = read_run(out, "train")
    data_at = open_prefix(run_config(out)["data"]["url"], "data.url of the run")
    data = load_manifest(data_at, "any")
    online = data.kind == "images"
    meaning = kept_meaning(out) if online else meaning_of(open_dataset(data_at.url, "latents"))
    trained = meaning.origins["autoencoder"].get("url")  # one that others have trained has no run
    autoencoder = open_prefix(trained, "autoencoder.url of the run") if trained else None
    made_of = [] if online else [open_prefix(data.origins["images"], "data.url of the cache")]
    samples = [name for name in out.names("samples") if out.exists(f"samples/{name}/{PROMPTS}")]
    places = [*made_of, *([autoencoder] if autoencoder else []), data_at, out]
    places += [out / f"samples/{name}" for name in samples] + [out / "evaluation"]
    evaluated = out.exists(f"evaluation/{EVALUATION}")
    return Findings(
        run=run,
        data=data,
        meaning=meaning,
        stages=[_stage(place) for place in places if read_summary(place)],
        curves={
            "autoencoder": read_metrics(autoencoder) if autoencoder else [],
            "denoiser": read_metrics(out),
        },
        samples=[_samples(out / f"samples/{name}") for name in samples],
        evaluation=json.loads(out.read(f"evaluation/{EVALUATION}")) if evaluated else None,
        reconstructions=decode_image(out.read(f"evaluation/{RECONSTRUCTIONS}"))
        if evaluated
        else None,
        grid=_last_grid(out),
    )


def _stage(place: Prefix) -> tuple[str, int, float, float, int]:
    """One row from the parts that one or several processes recorded."""
    parts = [part for part in read_summary(place) if part["samples"]] or read_summary(place)
    images = sum(part["samples"] for part in parts)
    # Of ranks that worked side by side each has a part of the time.
    seconds = sum(part["seconds"] / _ranks(part) for part in parts)
    memory = max(part["peak_memory"] for part in parts)
    return parts[0]["command"], images, seconds, images / max(seconds, 1e-9), memory


def _ranks(part: dict[str, Any]) -> int:
    return int(part.get("rank", "0-of-1").rpartition("-")[2])


def _last_grid(out: Prefix) -> NDArray[np.uint8] | None:
    grids = sorted(name for name in out.names(FOLDER) if name.endswith(".png"))
    return decode_image(out.read(f"{FOLDER}/{grids[-1]}")) if grids else None


def _samples(place: Prefix) -> Samples:
    prompts = json.loads(place.read(PROMPTS))["prompts"]
    name = place.url.rsplit("/", 1)[-1]
    return Samples(
        name, prompts, [decode_image(place.read(f"{i:05d}.png")) for i in range(len(prompts))]
    )
