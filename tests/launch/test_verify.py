"""`ldm verify`: what an audit needs is asked for before every byte is read, or pointed at."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conf.compose import compose_config
from conf.errors import UserError
from launch import verify as command
from tests.helpers.cache_stage import Stage, build_stage
from tests.helpers.caches import train_small
from tests.helpers.raw_images import write_raw
from tests.helpers.tiny_bert import tiny_bert


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    write_raw(folder / "images", (8,))
    return train_small(folder / "images", folder / "autoencoder", seed=0)


@pytest.fixture
def stage(autoencoder: Path, tmp_path: Path) -> Stage:
    stage = build_stage(tmp_path, autoencoder)
    stage.cache()
    return stage


def run_verify(url: Path, *more: str) -> int:
    return command.verify(compose_config("verify", [f"data.url={url}", "audit=3", *more]))


def _read_nothing(config: object) -> int:
    raise AssertionError("every byte was read first")


@pytest.mark.parametrize("name", ["images", "autoencoder", "bert"])
def test_what_is_missing_is_named_before_a_byte_is_read(
    stage: Stage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "verify_bytes", _read_nothing)
    shutil.rmtree(stage.folder / name)
    with pytest.raises(UserError, match=str(stage.folder / name)):
        run_verify(stage.latents)


def test_what_is_no_dataset_of_latents_is_refused_before_a_byte_is_read(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "verify_bytes", _read_nothing)
    with pytest.raises(UserError, match="latents are needed"):
        run_verify(stage.images)


def _moved(stage: Stage) -> list[str]:
    """The settings that point at encoders that have moved."""
    elsewhere = stage.folder / "elsewhere"
    elsewhere.mkdir()
    shutil.move(stage.autoencoder, elsewhere / "autoencoder")
    shutil.move(stage.bert, elsewhere / "bert")
    return [
        "autoencoder=trained",
        f"autoencoder.url={elsewhere / 'autoencoder'}",
        "text_encoder=minilm",
        f"text_encoder.path={elsewhere / 'bert'}",
    ]


def test_encoders_that_have_moved_can_be_pointed_at(stage: Stage) -> None:
    """The longest caption is the dataset's, and need not be given again."""
    assert run_verify(stage.latents, *_moved(stage)) == 0


def _other_autoencoder(stage: Stage) -> None:
    shutil.rmtree(stage.folder / "elsewhere/autoencoder")
    train_small(stage.images, stage.folder / "elsewhere/autoencoder", seed=1)


def _other_text_encoder(stage: Stage) -> None:
    shutil.rmtree(stage.folder / "elsewhere/bert")
    tiny_bert(stage.folder / "elsewhere/bert", seed=1)


@pytest.mark.parametrize(
    ("replace", "name"),
    [(_other_autoencoder, "autoencoder"), (_other_text_encoder, "text encoder")],
)
def test_encoders_that_are_pointed_at_have_to_be_the_same(
    stage: Stage,
    replace: Callable[[Stage], None],
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = _moved(stage)
    replace(stage)
    assert run_verify(stage.latents, *settings) == 1
    assert f"broken: {name}: not what the latents were made from" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings",
    [
        ["images=here"],
        ["autoencoder=trained", "autoencoder.url=here"],
        ["text_encoder=minilm"],
    ],
)
def test_what_only_an_audit_needs_is_refused_without_one(settings: list[str]) -> None:
    name = settings[0].partition("=")[0]
    with pytest.raises(UserError, match=f"^{name}: does nothing without audit"):
        compose_config("verify", ["data.url=latents", *settings])
    compose_config("verify", ["data.url=latents", "audit=1", *settings])


def test_an_autoencoder_without_weights_is_refused() -> None:
    with pytest.raises(UserError, match="has no weights"):
        compose_config("verify", ["data.url=latents", "audit=1", "autoencoder=kl_emoji"])
