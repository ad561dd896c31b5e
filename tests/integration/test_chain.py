"""The whole chain through the command line: in a local folder, and all of it in object storage."""

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.storage import open_prefix
from data.stream import open_dataset
from launch.demo import PROMPTS
from tests.helpers.commands import ldm
from tests.helpers.wandb_file import read_history, read_records, read_run_ids
from training.diffuse import load_trained

pytestmark = pytest.mark.timeout(1200)  # the demo is made in a fixture of the test that asks first


class Sources(HTMLParser):
    """What a page refers to, and the text it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[str] = []
        self.links: list[str] = []
        self.shown = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag == "img":
            self.images.append(values["src"] or "")
        else:
            self.links += [values[name] or "" for name in ("src", "href", "data") if name in values]

    def handle_data(self, data: str) -> None:
        self.shown += data


def read_page(page: str) -> Sources:
    parser = Sources()
    parser.feed(page)
    return parser


def test_the_demo_shows_what_it_does(demo: Path, demo_output: str) -> None:
    for number, command in enumerate(
        ("shard", "shard", "autoencoder", "cache", "train", "sample", "evaluate", "report"), 1
    ):
        assert f"[{number}/8]" in demo_output
        assert f"$ ldm {command} " in demo_output
    assert "2 ranks of cpu" in demo_output
    assert "zero2" in demo_output


def test_the_demo_prints_nothing_that_a_user_cannot_use(demo: Path, demo_output: str) -> None:
    for noise in ("Warning", "Traceback", "DeepSpeed", "built successfully"):
        assert noise not in demo_output


def test_training_and_held_out_emoji_have_none_in_common(demo: Path) -> None:
    groups = []
    for name in ("images", "held_out"):
        data = open_dataset(str(demo / name), "images")
        rows = [
            (shard, row)
            for shard, record in enumerate(data.manifest.shards)
            for row in range(record.samples)
        ]
        metas = [json.loads(data.read(*row).members["json"]) for row in rows]
        groups.append({meta["group"] for meta in metas})
    assert not groups[0] & groups[1]


def test_the_demo_draws_every_prompt(demo: Path) -> None:
    folder = demo / "run/samples/demo"
    assert json.loads((folder / "prompts.json").read_text())["prompts"] == list(PROMPTS)
    for i in range(len(PROMPTS)):
        with Image.open(folder / f"{i:05d}.png") as image:
            assert image.size == (64, 64)


def test_a_trained_model_knows_how_long_it_was_trained(demo: Path) -> None:
    assert load_trained(str(demo / "run")).samples_seen == 512


def test_the_report_needs_nothing_else(demo: Path) -> None:
    page = read_page((demo / "run/report.html").read_text())
    assert page.links == []
    assert len(page.images) >= len(PROMPTS) + 3
    assert all(source.startswith("data:image/png;base64,") for source in page.images)
    assert all(prompt in page.shown for prompt in PROMPTS)
    with Image.open(demo / "run/report.png") as picture:
        assert min(picture.size) > 500


def test_wandb_keeps_the_history_of_training_and_the_images_of_the_report(demo: Path) -> None:
    history = read_history(demo / "run" / "wandb")
    metrics = [json.loads(line) for line in (demo / "run/metrics.jsonl").read_text().splitlines()]
    logged = [line for line in history if "loss" in line]
    assert [line["samples_seen"] for line in logged] == [line["samples_seen"] for line in metrics]
    np.testing.assert_allclose([x["loss"] for x in logged], [x["loss"] for x in metrics])
    reported = [line for line in history if "report" in line]
    assert len(reported) == 1
    assert reported[0]["samples/demo"]["captions"] == list(PROMPTS)
    assert len(read_run_ids(demo / "run" / "wandb")) == 2
    shown_over = {
        record.metric.glob_name: record.metric.step_metric
        for file in (demo / "run" / "wandb").rglob("*.wandb")
        for record in read_records(file)
        if record.WhichOneof("record_type") == "metric"
    }
    assert shown_over["denoiser/*"] == "denoiser/samples_seen"


def test_the_chain_in_object_storage(s3_prefix: str, tmp_path: Path) -> None:
    """Every command reads from S3 and writes to it; training runs on two ranks."""
    at = s3_prefix
    brief = "tracking.log_every_samples=16 checkpoint.every_samples=16"
    open_prefix(at, "out").write("prompts.txt", b"red <b>apple</b>\nblack cat\n")
    for command in (
        f"shard source=openmoji source.split=held_out source.held_out_share=0.02 out={at}/images"
        " shard_samples=32",
        f"shard source=openmoji source.split=train source.held_out_share=0.99 out={at}/held_out",
        f"verify data.url={at}/images",
        f"autoencoder experiment=emoji_tiny_autoencoder data.url={at}/images"
        f" train.samples=32 {brief} out={at}/autoencoder",
        f"cache data.url={at}/images autoencoder.url={at}/autoencoder out={at}/latents",
        f"train experiment=emoji_tiny data.url={at}/latents cluster.processes=2"
        f" train.samples=32 batch_size=16 {brief} out={at}/run",
        f"sample checkpoint={at}/run prompts={at}/prompts.txt sampler.steps=2"
        f" out={at}/run/samples/first",
        f"evaluate checkpoint={at}/run data.url={at}/held_out samples=8 draws=1"
        f" out={at}/run/evaluation",
        f"report run={at}/run",
    ):
        ended = ldm(tmp_path / "log", *command.split())
        assert ended.code == 0, f"ldm {command}\n{ended.output}"
    run = open_prefix(f"{at}/run", "out")
    assert run.names("checkpoints") == ["00000001", "00000002"]
    evaluation = json.loads(run.read("evaluation/evaluation.json"))
    assert evaluation["images"] == 8
    with Image.open(io.BytesIO(run.read("samples/first/grid.png"))) as grid:
        assert grid.size == (4 * 66 + 2, 66 + 2)
    text = run.read("report.html").decode()
    assert read_page(text).links == []
    assert "red &lt;b&gt;apple" in text
    assert "<b>apple" not in text
    assert run.read("report.png").startswith(b"\x89PNG")
