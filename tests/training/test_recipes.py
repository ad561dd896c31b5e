"""Every recipe trains: a step of each, its UNet made small."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from conf.compose import compose_config, group_choices
from conf.errors import UserError
from data.storage import open_prefix
from tests.helpers.latents import CHANNELS, SMALL_UNET, checkpoint_of, train_small, write_latents
from training.diffuse import train_denoiser
from training.models.unet import UNet
from training.tracking.files import read_metrics

RECIPES = [name for name in group_choices("experiment") if not name.endswith("_autoencoder")]
TINY = (
    "unet.channels=16",
    "unet.norm_groups=4",
    "unet.res_blocks=1",
    "unet.head_channels=8",
    "engine=single",
    "engine.precision=fp32",
    "tracking.kind=off",
    "tracking.log_every_samples=4",
    "checkpoint.every_samples=8",
    "batch_size=4",
    "train.samples=8",
)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 16 latents."""
    folder = tmp_path_factory.mktemp("latents")
    write_latents(folder, [16])
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_a_step(name: str, latents: Path, tmp_path: Path) -> None:
    given = [f"experiment={name}", f"data.url={latents}", f"out={tmp_path / 'run'}", *TINY]
    train_denoiser(compose_config("train", given))
    lines = read_metrics(open_prefix(str(tmp_path / "run"), "out"))
    assert [line["samples_seen"] for line in lines] == [4, 8]
    assert all(0 < line["loss"] < 100 for line in lines)


def test_the_class_conditional_recipe_has_the_size_of_the_papers() -> None:
    config = compose_config("train", ["experiment=ldm4_imagenet", "data.url=x", "out=y"])
    autoencoder = ["autoencoder=kl_f4", "train.samples=1", "data.url=x", "out=y"]
    channels = compose_config("autoencoder", autoencoder).autoencoder.latent_channels
    with torch.device("meta"):
        unet = UNet(config.unet, channels, 2, classes=1000)
    parameters = sum(weights.numel() for weights in unet.parameters())
    assert parameters == pytest.approx(400e6, rel=0.01)  # Rombach et al. 2022, Table 3: LDM-4


@pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
def test_a_recipe_learns_variances(prediction: str, latents: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out"
    write_latents(held_out, [4], seed=1)
    learned = (
        "experiment=emoji",
        "diffusion.learned_variance=true",
        f"diffusion.prediction={prediction}",
        f"validation.url={held_out}",
        "validation.every_samples=4",
    )
    given = [*learned, f"data.url={latents}", f"out={tmp_path / 'run'}", *TINY]
    train_denoiser(compose_config("train", given))
    lines = read_metrics(open_prefix(str(tmp_path / "run"), "out"))
    trained = [line for line in lines if "loss" in line]
    assert all(math.isfinite(line["bound"]) for line in trained)
    weights = checkpoint_of(tmp_path / "run").weights()["conv_out.weight"]
    assert len(weights) == 2 * CHANNELS and weights[CHANNELS:].any()
    # A fresh network answers 0 and is held to noise: what is validated is the prediction alone.
    (first, *_) = (line["val_loss"] for line in lines if "val_loss" in line)
    assert 0.5 < first < 2


def test_a_run_starts_with_the_averaged_weights_of_another(latents: Path, tmp_path: Path) -> None:
    train_small(latents, tmp_path / "first")
    from_first = ("optimizer.lr=1e-12", f"start_from={tmp_path / 'first'}")
    train_small(latents, tmp_path / "second", *from_first)
    averages = checkpoint_of(tmp_path / "first").averages()
    for name, weights in checkpoint_of(tmp_path / "second").weights().items():
        torch.testing.assert_close(weights, averages[name], rtol=0, atol=1e-9)


def test_a_run_goes_on_whatever_becomes_of_what_it_started_from(
    latents: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train_small(latents, first, "train.samples=16")
    from_first = ("optimizer.decay=constant", f"start_from={first}")
    train_small(latents, second, *from_first, "train.samples=8")
    train_small(latents, first, "train.samples=24")  # goes on, so its averages are others
    train_small(latents, second, *from_first, "train.samples=16")
    shutil.copytree(first, tmp_path / "moved")
    with pytest.raises(UserError, match=r"start_from=.*moved: has other weights than .*second"):
        moved = ("optimizer.decay=constant", f"start_from={tmp_path / 'moved'}")
        train_small(latents, second, *moved, "train.samples=24")
    shutil.rmtree(first)
    train_small(latents, second, *from_first, "train.samples=24")
    assert checkpoint_of(second).progress.samples_seen == 24
    # What has saved nothing yet has to begin, and then with the same.
    shutil.rmtree(second / "checkpoints")
    shutil.move(tmp_path / "moved", first)
    with pytest.raises(UserError, match=r"start_from=.*first: has other weights"):
        train_small(latents, second, *from_first, "train.samples=24")


def test_a_run_of_another_unet_cannot_be_started_from(latents: Path, tmp_path: Path) -> None:
    train_small(latents, tmp_path / "first")
    sizes = [setting for setting in SMALL_UNET if "channel_mult" not in setting]
    with pytest.raises(UserError, match=r"start_from=.*of a UNet of other sizes \(\w"):
        train_small(
            latents,
            tmp_path / "second",
            *sizes,
            "unet.channel_mult=[1,1]",
            f"start_from={tmp_path / 'first'}",
        )
    assert not (tmp_path / "second" / "config.yaml").exists()
