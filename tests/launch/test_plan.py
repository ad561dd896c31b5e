"""Every recipe plans, from settings or from a dataset; what cannot run is refused by name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conf.compose import group_choices
from data.manifest import load_manifest
from data.storage import open_prefix
from launch.cli import run
from tests.helpers.latents import SMALL_UNET, write_latents
from tests.helpers.raw_images import write_raw
from training.plan.fed import stored_bytes
from training.tracking.files import METRICS

RECIPES = [name for name in group_choices("experiment") if not name.endswith("_autoencoder")]
EMOJI = ("experiment=emoji", "plan.gpu=L4", "plan.image_size=64", "plan.text_width=384")
EIGHT = ("plan.gpu=H100", "plan.gpus=8", "micro_batch_size=32")


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The plan of a command, which is not refused."""
    assert run(["plan", *arguments, "plan.json=true"]) == 0, capsys.readouterr().err
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line that a plan is refused with."""
    assert run(["plan", "train", *arguments]) == 2
    return capsys.readouterr().err.removeprefix("ldm: ")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_plans(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = () if name.startswith("emoji") else EIGHT
    if name == "ldm4_imagenet":
        gpu = ("plan.gpu=H100", "plan.gpus=8", "micro_batch_size=30", "plan.classes=1000")
    plan = planned(capsys, "train", f"experiment={name}", "plan.image_size=256", *gpu)
    assert plan["micro_batch_size"] * plan["ranks"] * plan["accumulation"] == plan["batch_size"]
    assert plan["steps"] * plan["batch_size"] >= plan["samples"]
    assert plan["chosen"]["kind"] == "zero2"
    assert plan["chosen"]["activations"] > 0


def test_figures_follow_from_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("train", "experiment=sd21", *EIGHT, "plan.nodes=4", "plan.dollars_per_gpu_hour=2")
    plan = planned(capsys, *given, "plan.samples=100000000", "plan.mfu=0.4")
    assert plan["parameters"] == pytest.approx(866e6, rel=0.001)
    assert plan["accumulation"] == 2
    assert plan["epochs"] == 4
    assert plan["flops"] == pytest.approx(804e9, rel=0.01)
    hours = 3 * 400e6 * plan["flops"] / (32 * 0.4 * 989.4e12) / 3600
    assert plan["hours"] == pytest.approx(hours, rel=1e-4)  # the last step is not cut
    assert plan["dollars"] == pytest.approx(plan["hours"] * 64)
    assert plan["checkpoint_bytes"] == 16 * plan["parameters"]
    assert plan["checkpoints"] == 2 + 400_000_000 // 40_960_000
    bytes_a_sample = stored_bytes([2 * 2 * 4 * 64 * 64, 2 * 77 * 1024])
    assert plan["dataset_bytes"] == 1e8 * bytes_a_sample
    rate = plan["batch_size"] / plan["step_seconds"]
    assert plan["read_bytes"] == pytest.approx(rate * bytes_a_sample)


def test_classes_are_one_token_of_a_table_that_is_learned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("train", "experiment=emoji_tiny", "plan.gpu=L4", "unet.class_width=1024")
    words, classes = (planned(capsys, *given, *more) for more in ((), ("plan.classes=10",)))
    assert classes["parameters"] == words["parameters"] + 11 * 1024
    assert classes["chosen"]["activations"] < words["chosen"]["activations"]
    learned = ("diffusion.schedule=cosine", "diffusion.learned_variance=true")
    more = planned(capsys, *given, *learned)["parameters"] - words["parameters"]
    assert more == 4 * (9 * 32 + 1)  # as many channels again of the last convolution


def test_recomputing_takes_less_memory_and_more_time(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("train", *EMOJI)
    plain, again = (planned(capsys, *given, f"engine.recompute={way}") for way in ("false", "true"))
    assert again["chosen"]["activations"] < plain["chosen"]["activations"] / 2
    assert again["hours"] == pytest.approx(plain["hours"] * 4 / 3)


def test_a_dataset_says_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_latents(tmp_path / "latents", buckets=((64, 64), (48, 80)))
    manifest = load_manifest(open_prefix(str(tmp_path / "latents"), "data.url"), "latents")
    given = ("train", *SMALL_UNET, f"data.url={tmp_path / 'latents'}", "train.samples=74")
    plan = planned(capsys, *given, "batch_size=37", "plan.text_width=999")
    assert plan["epochs"] == 2
    assert plan["dataset_bytes"] == sum(shard.bytes for shard in manifest.shards)
    assert plan["remarks"] == []
    assert not (tmp_path / "run").exists()
    assumed = planned(capsys, "train", *SMALL_UNET, "train.samples=74", "batch_size=37")
    assert "no data.url is given" in assumed["remarks"][0]
    gone = ("train", *SMALL_UNET, f"data.url={tmp_path / 'gone'}", "train.samples=74")
    assert "gone" in planned(capsys, *gone)["remarks"][0]


def test_images_say_their_sizes_and_that_encoding_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"data.url={tmp_path / 'images'}"
    write_raw(tmp_path / "images", [3, 2], lambda i: {"bucket": i % 2}, ((64, 64), (32, 128)))
    given = ("train", *SMALL_UNET, url, "train.samples=10", "batch_size=5", "plan.gpu=L4")
    plan = planned(capsys, *given)
    assert plan["epochs"] == 2
    assert "encoding them on the way is in no figure" in plan["remarks"][0]
    cache = planned(capsys, "cache", "autoencoder=sd15", url, "plan.gpu=L4")
    assert cache["images"] == 5
    assert cache["bytes"] == 5 * cache["sample_bytes"]
    write_latents(tmp_path / "latents", [4])
    assert run(["plan", "cache", "autoencoder=sd15", f"data.url={tmp_path / 'latents'}"]) == 2
    assert "images are needed" in capsys.readouterr().err


def test_an_estimated_sample_is_as_large_as_a_real_one(tmp_path: Path) -> None:
    manifest = write_latents(tmp_path, [20])
    # Captions of the helper have 1 to 5 tokens of 12 channels, so all fill one block.
    estimated = 20 * stored_bytes([2 * 2 * 4 * 8 * 8, 2 * 5 * 12])
    record = 10_240  # a tar ends with two blocks and fills its last record
    assert manifest.shards[0].bytes == -(-(estimated + 1024) // record) * record


def test_a_run_that_it_is_like_gives_the_mfu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    like = f"plan.like={tmp_path}"
    given = ("train", *EMOJI, like)
    assert "plan.like=" in refused(capsys, *given[1:])
    lines = [{"samples_seen": i, "mfu": mfu} for i, mfu in enumerate((0.1, 0.5, 0.25))]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert planned(capsys, *given)["machine"]["mfu"] == 0.25


def test_an_engine_that_does_not_fit_is_refused_with_what_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = (*EMOJI, "batch_size=6144")
    line = refused(capsys, *given)
    assert line.startswith("engine=zero2: needs 28.80 GB a rank, L4 has 22.00 to give; ")
    assert "; choose micro_batch_size=3072, or engine.recompute=true\n" in line
    planned(capsys, "train", *given, "micro_batch_size=3072")
    planned(capsys, "train", *given, "engine.recompute=true")
    # 200 MB are left, which is too little for all of it on each of eight ranks.
    tight = (*EMOJI, "plan.gpus=8", "plan.reserve_gb=23.8", "engine=ddp")
    line = refused(capsys, *tight)
    assert "; choose engine=zero1, or engine=zero2, or engine=zero3, or engine.recompute" in line
    planned(capsys, "train", *tight, "engine=zero1")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("plan.gpus=3",), "batch_size=2048: cannot be divided by 3 ranks"),
        (("plan.gpus=8", "engine=single"), "engine=single: runs one rank, plan.nodes*plan.gpus=8"),
        (("plan.gpu=H1000",), "plan.gpu=H1000: is not known"),
        ((*EIGHT, "cluster.minutes=0.1"), "cluster.minutes=0.1: is over before a step"),
        (("plan.image_size=500", *EIGHT), "unet.channel_mult="),
    ],
)
def test_what_cannot_run_is_refused(
    given: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, "experiment=sd21", *given).startswith(named)


def test_a_store_without_room_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*EMOJI, f"out={tmp_path / 'a' / 'run'}"]
    planned(capsys, "train", *given)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**8}))
    assert "0.1 GB are free and 0.4 GB are needed" in refused(capsys, *given)
    assert not (tmp_path / "a").exists()


def test_a_cache_plans(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("cache", "autoencoder=sd21", "text_encoder=sd21", "plan.gpu=A100-80GB", "plan.gpus=8")
    plan = planned(capsys, *given, "plan.samples=1000000", "plan.dollars_per_gpu_hour=1")
    assert plan["flops"] == pytest.approx(1117e9, rel=0.01)
    assert plan["sample_bytes"] == stored_bytes([2 * 2 * 4 * 64 * 64, 2 * 77 * 1024])
    assert plan["hours"] == pytest.approx(1e6 * plan["flops"] / (8 * 0.3 * 156e12) / 3600)
    assert plan["dollars"] == pytest.approx(8 * plan["hours"])
    both = planned(capsys, *given, "sizes=[256,512]", "encoding.flip=true")
    assert both["flops"] == pytest.approx(2 * (1117e9 + 273e9), rel=0.01)
    assert both["hours"] is None


@pytest.mark.parametrize("name", ["reserve_gb", "store_mb_s", "downsampling", "classes"])
def test_a_cache_is_not_planned_by_settings_that_it_does_not_read(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", "cache", "autoencoder=sd15", f"plan.{name}=1"]) == 2
    assert f"plan.{name}=1: there is no such setting" in capsys.readouterr().err


def test_what_is_printed_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["plan", "train", "experiment=sd21", *EIGHT]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    (chosen,) = (line.split() for line in lines if line.startswith("> "))
    assert chosen[1] == "zero2"
    assert chosen[-1] == "yes"
    assert any("865.9M parameters" in line for line in lines)


def test_a_plan_loads_no_engine() -> None:
    code = (
        "import sys; from launch.cli import run; "
        "run(['plan', 'train', 'experiment=emoji', 'plan.gpu=L4']); "
        "sys.exit(bool({'deepspeed', 'accelerate', 'transformers', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
