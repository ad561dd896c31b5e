import numpy as np
import pytest

from data.image import decode_image
from data.manifest import Manifest
from data.spec import LatentSpec, TextSpec
from launch.charts import picture
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
    assert decode_image(picture(bare)).size > 0


def test_the_picture_shows_the_samples(findings: Findings) -> None:
    drawn = decode_image(picture(findings))
    assert drawn.shape[2] == 3
    assert (drawn == 0).all(axis=2).mean() > 0.01  # the black samples are there
