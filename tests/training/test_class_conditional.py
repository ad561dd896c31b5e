"""Classes from raw shards to images: captions are numbers or names, the rest is as with text."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conf.compose import compose_config
from conf.errors import UserError
from data.arrays import load_array
from data.sample import TEXT, TOKENS
from data.storage import open_prefix
from data.stream import open_dataset
from tests.helpers.caches import run_cache, train_small
from tests.helpers.latents import SMALL_UNET, checkpoint_of
from tests.helpers.latents import train_small as train_denoiser_small
from tests.helpers.raw_images import write_raw
from training.diffuse import load_trained
from training.evaluate import evaluate
from training.generate import generate
from training.tracking.files import read_metrics

NAMES = ["apple", "bear", "cat"]
CLASSES = ("text_encoder=classes", "text_encoder.path=classes://3")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images, whose captions are 0, 1, 2, 0 and so on."""
    folder = tmp_path_factory.mktemp("classes") / "images"
    write_raw(folder, (8, 8), lambda number: {"txt": str(number % 3).encode()})
    return folder


@pytest.fixture(scope="module")
def autoencoder(images: Path) -> Path:
    return train_small(images, images.parent / "autoencoder", seed=0)


@pytest.fixture(scope="module")
def latents(images: Path, autoencoder: Path) -> Path:
    run_cache(images, autoencoder, images.parent / "latents", *CLASSES)
    return images.parent / "latents"


@pytest.fixture(scope="module")
def run(latents: Path) -> Path:
    """Four steps with learned variances, half of the captions dropped, a grid at the end."""
    more = (
        "unet.channel_mult=[1]",
        "unet.attention_levels=[0]",
        "unet.class_width=24",
        "diffusion.learned_variance=true",
        "diffusion.caption_dropout=0.5",
        "optimizer.lr=1e-2",
        "batch_size=8",
        "train.samples=32",
        "train.ema_half_life=1",
        "tracking.log_every_samples=8",
        "validation.prompts=[0,2]",
        "validation.sampler.steps=2",
    )
    train_denoiser_small(latents, latents.parent / "run", *more)
    return latents.parent / "run"


def test_a_cache_holds_numbers_and_says_of_how_many_classes(latents: Path) -> None:
    data = open_dataset(str(latents), "latents")
    assert data.manifest.text is not None and data.manifest.text.classes == 3
    stored = [load_array(data.read(shard, row).members[TEXT]) for shard in (0, 1) for row in (0, 7)]
    assert [one.tolist() for one in stored] == [[[0, n % 3]] for n in (0, 7, 8, 15)]


def test_the_unet_learns_a_vector_for_each_class_and_for_none(run: Path) -> None:
    trained, averaged = checkpoint_of(run).weights(), checkpoint_of(run).averages()
    name = "class_embedding.table.weight"
    assert trained[name].shape == (4, 24)
    assert not torch.equal(trained[name], averaged[name])
    lines = read_metrics(open_prefix(str(run), "out"))
    assert all(np.isfinite([line["loss"], line["bound"]]).all() for line in lines)
    assert [file.suffix for file in (run / "samples").iterdir()] == [".png"]


def test_classes_are_sampled_with_guidance_and_learned_variances(run: Path, tmp_path: Path) -> None:
    def sample(name: str, *more: str) -> list[np.ndarray]:
        out = tmp_path / name
        given = [f"checkpoint={run}", f"out={out}", "sampler.steps=3", "prompts=[2,0]", *more]
        generate(compose_config("sample", given))
        return [np.array(Image.open(out / f"0000{i}.png")) for i in (0, 1)]

    ddpm = sample("ddpm", "sampler.kind=ddpm", "sampler.guidance_scale=3")
    assert ddpm[0].shape == (16, 16, 3)
    ddim = sample("ddim", "sampler.guidance_scale=3")
    swapped = sample("swapped", "sampler.guidance_scale=3", "prompts=['0','2']")
    for one, other in zip(ddim, swapped, strict=True):
        assert not np.array_equal(one, other)  # the same noise, another class


def test_a_prompt_that_is_no_class_takes_no_place(run: Path, tmp_path: Path) -> None:
    given = [f"checkpoint={run}", f"out={tmp_path / 'out'}", "prompts=[1,'a cat']"]
    with pytest.raises(UserError, match="has no class 'a cat'; give a number from 0 to 2"):
        generate(compose_config("sample", given))
    assert not (tmp_path / "out").exists()


def test_a_run_of_classes_is_evaluated(run: Path, images: Path, tmp_path: Path) -> None:
    given = [f"checkpoint={run}", f"data.url={images}", f"out={tmp_path / 'evaluation'}", "draws=2"]
    result = evaluate(compose_config("evaluate", given))
    # Errors of noise of unit variance: of the prediction alone, whatever is said of variances.
    assert all(0.5 < result["loss"][name]["mean"] < 2 for name in ("right", "other", "empty"))
    assert "energy" not in result


def test_an_energy_score_depends_on_guidance_and_on_no_draw_that_is_not_named(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def energy(name: str, *more: str) -> dict[str, float]:
        given = [f"checkpoint={run}", f"data.url={images}", f"out={tmp_path / name}", "draws=1"]
        made = ["images_per_caption=2", "sampler.steps=2", *more]
        found: dict[str, float] = evaluate(compose_config("evaluate", [*given, *made]))["energy"]
        return found

    one = energy("one", "sampler.guidance_scale=2")
    assert one["mean"] > 0 and one["error"] > 0
    assert (
        "energy score of 2 images a caption, guidance 2, 2 steps of ddim" in capsys.readouterr().out
    )
    assert energy("again", "sampler.guidance_scale=2") == one
    assert energy("one", "sampler.guidance_scale=2") == one  # which was finished
    assert energy("harder", "sampler.guidance_scale=6") != one
    with pytest.raises(UserError, match=r"guidance_scale"):
        energy("one", "sampler.guidance_scale=6")


def test_a_grid_of_what_is_no_class_is_refused_before_the_first_step(
    latents: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="has no class '3'"):
        train_denoiser_small(latents, tmp_path / "run", "validation.prompts=[3]")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_ids_and_images_give_the_training_that_stored_numbers_give(
    images: Path, autoencoder: Path, latents: Path, tmp_path: Path
) -> None:
    run_cache(images, autoencoder, tmp_path / "ids", *CLASSES, "encoding.text=ids")
    data = open_dataset(str(tmp_path / "ids"), "latents")
    assert load_array(data.read(0, 5).members[TOKENS]).tolist() == [[2]]
    small = [s for s in SMALL_UNET if "mult" not in s and "levels" not in s]
    small += ["unet.channel_mult=[1]", "unet.attention_levels=[0]", "optimizer.lr=1e-2"]
    weights = []
    for name, url, more in (
        ("a", latents, ()),
        ("b", tmp_path / "ids", ()),
        ("c", images, ("autoencoder=trained", f"autoencoder.url={autoencoder}", *CLASSES)),
    ):
        train_denoiser_small(url, tmp_path / name, *small, *more)
        weights.append(checkpoint_of(tmp_path / name).weights())
        load_trained(str(tmp_path / name))
    for other in weights[1:]:
        assert [name for name in other if not torch.equal(weights[0][name], other[name])] == []


def test_names_come_from_a_file_and_a_caption_that_is_none_is_refused_by_name(
    autoencoder: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    named = ("text_encoder=classes", f"text_encoder.path=classes://{tmp_path}/names.txt")
    write_raw(tmp_path / "images", (6,), lambda number: {"txt": NAMES[number % 3].encode()})
    run_cache(tmp_path / "images", autoencoder, tmp_path / "latents", *named)
    data = open_dataset(str(tmp_path / "latents"), "latents")
    assert [load_array(data.read(0, n).members[TEXT])[0, 1] for n in range(4)] == [0, 1, 2, 0]
    small = ("unet.channel_mult=[1]", "unet.attention_levels=[0]")
    train_denoiser_small(tmp_path / "latents", tmp_path / "run", *named, *small)
    (tmp_path / "names.txt").write_text("\n".join(reversed(NAMES)))
    with pytest.raises(
        UserError, match=r"is stale: its text_encoder at classes://.*names\.txt has changed"
    ):
        train_denoiser_small(tmp_path / "latents", tmp_path / "other")
    write_raw(tmp_path / "dogs", (6,), lambda number: {"txt": b"dog"})
    with pytest.raises(UserError, match="has no class 'dog'"):
        run_cache(tmp_path / "dogs", autoencoder, tmp_path / "more", *named)
