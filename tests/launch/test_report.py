from dataclasses import replace

import numpy as np
import pytest

from data.image import decode_image
from data.manifest import Manifest
from data.spec import LatentSpec, TextSpec
from launch.charts import bins_chart, loss_chart, picture
from launch.findings import Findings, Samples
from launch.report import page
from training.meaning import Meaning


@pytest.fixture
def findings() -> Findings:
    """A run with two samples, one of a hostile prompt."""
    plain = {"mean": 1.0, "error": 0.1}
    ones = (1.0,) * 4
    return Findings(
        run={"unet": {"channels": 8}},
        data=Manifest(
            kind="latents", buckets=((64, 64),), members=(), shards=(), identity="x", settings={}
        ),
        meaning=Meaning(
            LatentSpec(4, 8, 8, "float16", "abc", ones, ones, ones, ones),
            TextSpec("def", 384, 32, "float16", "0"),
            {},
        ),
        stages=[("shard", 100, 2.0, 50.0, 10**9), ("train", 400, 8.0, 50.0, 2 * 10**9)],
        curves={
            "autoencoder": [{"samples_seen": 10 * i, "loss": 1 / i} for i in range(1, 9)],
            "denoiser": [{"samples_seen": 20 * i, "loss": 1 / i} for i in range(1, 9)],
        },
        samples=[
            Samples(
                "demo",
                ["red apple", "<script>alert(1)</script>"],
                [np.zeros((8, 8, 3), np.uint8)] * 2,
            )
        ],
        evaluation={
            "images": 10,
            "groups": 5,
            "trained_on": 0,
            "psnr": {"mean": 23.456, "error": 0.1},
            "loss": {name: plain for name in ("right", "other", "empty")},
            "margin": {name: {"mean": 0.5, "error": 0.1} for name in ("other", "empty")},
        },
        reconstructions=np.zeros((16, 64, 3), np.uint8),
    )


def test_the_page_needs_nothing_else_and_runs_nothing(findings: Findings) -> None:
    content = page(findings, b"\x89PNG")
    assert "http://" not in content
    assert "https://" not in content
    assert "<script" not in content
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in content
    sources = content.count("src=")
    assert sources == content.count('src="data:image/png;base64,') >= 6


def test_the_page_says_what_was_measured(findings: Findings) -> None:
    content = page(findings, b"")
    assert "23.46 ± 0.10 dB" in content
    assert "right captions win over other ones: by 0.5000 ± 0.1000" in content
    assert "2.00 GB" in content
    assert "50.0" in content


def test_a_run_that_was_not_evaluated_says_so(findings: Findings) -> None:
    bare = Findings(
        run=findings.run,
        data=findings.data,
        meaning=findings.meaning,
        stages=findings.stages,
        curves=findings.curves,
        samples=[],
        evaluation=None,
        reconstructions=None,
    )
    assert "Not measured" in page(bare, b"")
    drawn = decode_image(picture(bare))
    assert drawn.shape[0] < drawn.shape[1]  # the charts alone


def test_the_picture_shows_the_samples(findings: Findings) -> None:
    drawn = decode_image(picture(findings))
    assert drawn.shape[2] == 3
    assert (drawn == 0).all(axis=2).mean() > 0.01  # the black samples are there


def test_the_grid_of_the_training_stands_in_for_samples(findings: Findings) -> None:
    bare = replace(findings, samples=[], reconstructions=None)
    grid = replace(bare, grid=np.zeros((64, 128, 3), np.uint8))
    before, after = decode_image(picture(bare)), decode_image(picture(grid))
    assert after.shape[0] > before.shape[0]
    assert (after == 0).all(axis=2).sum() > (before == 0).all(axis=2).sum() + 10_000


def test_what_was_measured_on_the_way_is_shown(findings: Findings) -> None:
    bare = page(findings, b"")
    measured = {"samples_seen": 160, "val_loss": 0.5, "val_loss_bin_0": 0.9, "val_loss_bin_2": 0.1}
    lines = [*findings.curves["denoiser"], measured]
    curves = {**findings.curves, "denoiser": lines}
    watched = replace(findings, curves=curves, grid=np.zeros((8, 8, 3), np.uint8))
    content = page(watched, b"")
    assert content.count("src=") == bare.count("src=") + 2  # the bins and the grid
    assert "The last sample grid" in content
    assert bins_chart(findings.curves["denoiser"]) is None
    chart = bins_chart(lines)
    assert chart is not None
    bars = (decode_image(chart) == (0x2B, 0x6C, 0xB0)).all(axis=2).sum(axis=0)
    # Two bars, at the sides, the first nine times as high as the last.
    first, last = bars[: bars.size // 2].max(), bars[bars.size // 2 :].max()
    assert first == pytest.approx(9 * last, rel=0.1)
    curve = decode_image(loss_chart(curves))
    assert ((curve == (0xDD, 0x6B, 0x20)).all(axis=2)).any()
