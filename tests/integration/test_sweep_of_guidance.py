"""A sweep of evaluations of one run, as a user starts it, on GPUs that are not there."""

import json
import time
from pathlib import Path

import psutil
import pytest

from conf.compose import compose_config
from data.storage import open_prefix
from launch.report import report
from launch.sweep.gpus import VISIBLE
from launch.sweep.record import Outcome, ranked, read_trials
from tests.helpers.caches import run_cache, train_small
from tests.helpers.commands import running_ldm, wait_for_end
from tests.helpers.latents import train_small as train_denoiser_small
from tests.helpers.raw_images import write_raw

SCALES = (0, 1, 4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of three classes and a run that was trained on them."""
    folder = tmp_path_factory.mktemp("guidance")
    images, latents = folder / "images", folder / "latents"
    write_raw(images, (8,), lambda number: {"txt": str(number % 3).encode()})
    autoencoder = train_small(images, folder / "autoencoder", seed=0)
    classes = ("text_encoder=classes", "text_encoder.path=classes://3")
    run_cache(images, autoencoder, latents, *classes)
    unet = ("unet.channel_mult=[1]", "unet.attention_levels=[0]", "unet.class_width=24")
    train_denoiser_small(latents, folder / "run", *unet, "batch_size=8", "train.samples=16")
    return folder


def test_a_sweep_over_guidance_ranks_evaluations_and_gives_each_a_gpu(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, log = tmp_path / "sweep", tmp_path / "log"
    command = [
        *("evaluate", "-m", f"checkpoint={place / 'run'}", f"data.url={place / 'images'}"),
        *(f"out={out}", "images_per_caption=2", "sampler.steps=2", "sweep.parallel=2"),
        f"sampler.guidance_scale={','.join(map(str, SCALES))}",
    ]
    monkeypatch.setenv(VISIBLE, "7,9")
    seen = {}
    with running_ldm(log, *command) as process:
        while process.poll() is None:
            for child in psutil.Process(process.pid).children():
                try:
                    seen[child.pid] = child.environ()[VISIBLE]
                except (psutil.Error, KeyError):  # it has ended, or not begun yet
                    continue
            time.sleep(0.05)
        ended = wait_for_end(process, log)
    assert ended.code == 0, ended.output
    assert len(seen) == len(SCALES)
    assert set(seen.values()) == {"7", "9"}

    trials = read_trials(open_prefix(str(out), "out"))
    assert {one.outcome for one in trials} == {Outcome.complete}
    assert [one.values for one in trials] == [{"sampler.guidance_scale": str(s)} for s in SCALES]
    assert len({one.loss for one in trials}) == len(SCALES)
    for one in trials:
        told = json.loads((out / f"{one.number:03d}/evaluation.json").read_text())
        assert {"mean": one.loss, "error": one.error} == told["energy"]
        assert told["made"]["guidance_scale"] == float(one.values["sampler.guidance_scale"])
    best = ranked(trials)[0]
    assert f"best: trial {best.number:03d}, energy score {best.figure}" in ended.output
    assert f"ldm evaluate checkpoint={place / 'run'}" in ended.output

    report(compose_config("report", [f"run={out}", "tracking.kind=off"]))
    page = (out / "report.html").read_text()
    assert page.count("src=") == page.count('src="data:image/png;base64,') == 2
    assert f"<td>{best.figure}</td>" in page
    assert "<h2>sampler.guidance_scale</h2>" in page
