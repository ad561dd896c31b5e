import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from conf.encoders import TextEncoderConfig
from conf.errors import UserError
from tests.helpers.text_models import CAPTIONS, clip_text, clip_tokenizer
from training.models.text import TextEncoder, absolute_path, load_text_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sd")
    clip_text(root / "text_encoder")
    clip_tokenizer(root / "tokenizer")
    return root


@pytest.fixture
def broken(folder, tmp_path) -> Path:
    """A copy of `folder` that a test may spoil."""
    return shutil.copytree(folder, tmp_path / "copy")


def load(path: Path | str, subfolder: str | None = "text_encoder", **settings) -> TextEncoder:
    return load_text_encoder(TextEncoderConfig(path=str(path), subfolder=subfolder, **settings))


def same(one: TextEncoder, other: TextEncoder) -> bool:
    return torch.equal(one.encode(CAPTIONS).embeddings, other.encode(CAPTIONS).embeddings)


def test_a_tokenizer_may_be_in_the_model_s_own_folder(folder, tmp_path):
    both = shutil.copytree(folder / "text_encoder", tmp_path / "m" / "words")
    shutil.copytree(folder / "tokenizer", both, dirs_exist_ok=True)
    expected = load(folder)
    assert same(load(both, None), expected)
    assert same(load(tmp_path / "m", "words"), expected)


def test_a_missing_subfolder_or_tokenizer_is_named(broken):
    with pytest.raises(UserError, match=r"there is no folder .*/text_encoder_3"):
        load(broken, "text_encoder_3")
    with pytest.raises(UserError, match="text_encoder has no tokenizer") as caught:
        load(broken / "text_encoder", None)
    assert "subfolder=text_encoder" in caught.value.remedy
    (broken / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"vocab.json without merges.txt"):
        load(broken)
    shutil.rmtree(broken / "tokenizer")
    with pytest.raises(UserError, match=r"there is no folder .*/tokenizer"):
        load(broken)


def test_a_revision_of_a_local_folder_is_refused(folder):
    with pytest.raises(UserError, match="a local folder has none") as caught:
        load(folder, revision="main")
    assert caught.value.setting == "text_encoder.revision=main"


def test_shards_are_one_model(folder, broken):
    expected = load(folder)
    model = CLIPTextModel.from_pretrained(broken / "text_encoder")
    (broken / "text_encoder" / "model.safetensors").unlink()
    model.save_pretrained(broken / "text_encoder", max_shard_size="1MB")
    shards = sorted((broken / "text_encoder").glob("model-*.safetensors"))
    assert len(shards) > 1
    sharded = load(broken)
    assert same(sharded, expected)
    shards[-1].unlink()
    with pytest.raises(UserError, match=rf"names {shards[-1].name}, which is not there"):
        load(broken)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../x"}}'])
def test_a_damaged_index_is_refused(broken, index):
    weights = broken / "text_encoder" / "model.safetensors"
    weights.rename(broken / "x")
    (broken / "text_encoder" / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"is no index of shards|names \.\./x"):
        load(broken)


def test_16_bit_weights_alone_are_taken_but_not_before_whole_ones(broken):
    weights = broken / "text_encoder" / "model.safetensors"
    half = {name: w.half() for name, w in load_file(weights).items()}
    alone = weights.with_name("model.fp16.safetensors")
    whole = load(broken)
    save_file(half, alone, {"format": "pt"})
    assert load(broken).fingerprint == whole.fingerprint
    assert same(load(broken), whole)
    weights.unlink()
    encoding = load(broken).encode(CAPTIONS)
    assert encoding.embeddings.dtype == torch.float32
    torch.testing.assert_close(
        encoding.embeddings, whole.encode(CAPTIONS).embeddings, atol=0.02, rtol=0.02
    )


def test_two_files_of_weights_are_not_guessed_between(broken):
    weights = broken / "text_encoder" / "model.safetensors"
    shutil.copy(weights, weights.with_name("one.safetensors"))
    weights.rename(weights.with_name("two.safetensors"))
    with pytest.raises(UserError, match=r"no .*safetensors file that is a model's own"):
        load(broken)


def test_a_path_on_the_hub_or_in_a_package_reads_the_same_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("hf://org/name", "package://name/folder"):
        assert absolute_path(path) == path
    assert absolute_path("folder") == str(tmp_path / "folder")
