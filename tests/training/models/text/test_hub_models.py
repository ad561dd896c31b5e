"""Text models from the hub, by a server of our own."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel

from conf.encoders import TextEncoderConfig
from conf.errors import UserError
from tests.helpers.hub import COMMIT, serve_hub
from tests.helpers.text_models import CAPTIONS, clip_text, clip_tokenizer, open_clip_model
from training.models.text import TextEncoder, load_text_encoder

SETTINGS = {"config.json", "merges.txt", "vocab.json", "special_tokens_map.json"}
SETTINGS |= {"tokenizer_config.json"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A repository of Stable Diffusion's kind, with much that is of no use here."""
    root = tmp_path / "repository"
    clip_text(root / "text_encoder")
    clip_tokenizer(root / "tokenizer")
    for name in ("text_encoder/pytorch_model.bin", "text_encoder/evil.py", "unet/config.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("raise AssertionError")
    weights = root / "text_encoder" / "model.safetensors"
    shutil.copy(weights, weights.with_name("model.fp16.safetensors"))
    return root


def load(path: Path | str, subfolder: str | None = "text_encoder", **settings) -> TextEncoder:
    return load_text_encoder(TextEncoderConfig(path=str(path), subfolder=subfolder, **settings))


def same(one: TextEncoder, other: TextEncoder) -> bool:
    return torch.equal(one.encode(CAPTIONS).embeddings, other.encode(CAPTIONS).embeddings)


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_what_is_needed_is_fetched_and_nothing_else(folder, tmp_path, revision):
    with serve_hub("org/sd", folder, tmp_path / "cache") as hub:
        encoder = load("hf://org/sd", revision=revision)
        assert {Path(name).name for name in hub.fetched} == {*SETTINGS, "model.safetensors"}
        assert len(hub.fetched) == len(set(hub.fetched))
        hub.stop()
        assert load("hf://org/sd", revision=revision).fingerprint == encoder.fingerprint
    local = load(folder)
    assert same(encoder, local)
    assert encoder.fingerprint == local.fingerprint


@pytest.mark.parametrize("form", ["shards", "fp16", "open_clip"])
def test_other_forms_of_weights_are_found(folder, tmp_path, form):
    repository = tmp_path / form
    if form == "open_clip":
        open_clip_model(repository)
    else:
        shutil.copytree(folder / "text_encoder", repository)
        shutil.copytree(folder / "tokenizer", repository, dirs_exist_ok=True)
    weights = repository / "model.safetensors"
    if form == "shards":
        model = CLIPTextModel.from_pretrained(repository)
        weights.unlink()
        model.save_pretrained(repository, max_shard_size="1MB")
    if form == "fp16":
        weights.unlink()
    with serve_hub("org/name", repository, tmp_path / "cache") as hub:
        encoder = load("hf://org/name", None)
        hub.stop()
        assert same(load("hf://org/name", None), encoder)
    assert same(encoder, load(repository, None))


def test_what_is_not_there_is_named(folder, tmp_path):
    with serve_hub("org/sd", folder, tmp_path / "cache"):
        with pytest.raises(UserError, match="org/other: is not on the hub"):
            load("hf://org/other")
        with pytest.raises(UserError, match="has no revision v9"):
            load("hf://org/sd", revision="v9")
        with pytest.raises(UserError, match="in text_encoder_2"):
            load("hf://org/sd", "text_encoder_2")
    shutil.rmtree(folder / "tokenizer")
    with (
        serve_hub("org/sd", folder, tmp_path / "another"),
        pytest.raises(UserError, match="in tokenizer") as caught,
    ):
        load("hf://org/sd")
    assert caught.value.setting == "text_encoder.path=hf://org/sd"


def test_a_repository_without_safetensors_is_refused(folder, tmp_path):
    for weights in (folder / "text_encoder").glob("*.safetensors"):
        torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
        weights.unlink()
    with serve_hub("org/bin", folder, tmp_path / "cache") as hub:
        with pytest.raises(UserError, match=r"no \*\.safetensors file"):
            load("hf://org/bin")
        assert not any(name.endswith(".bin") for name in hub.fetched)
