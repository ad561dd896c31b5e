from pathlib import Path

import open_clip
import pytest
import torch
from transformers import AutoTokenizer

from conf.encoders import TextEncoderConfig
from conf.enums import Pooled
from tests.helpers.text_models import CAPTIONS, PROJECTED, WIDTH, clip_text, clip_tokenizer
from tests.helpers.text_models import clip_whole as save_whole
from training.models.text import TextEncoder, load_text_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """As Stable Diffusion has it: a model and its tokenizer in folders side by side."""
    root = tmp_path_factory.mktemp("clip")
    clip_tokenizer(root / "tokenizer_2")
    return root


@pytest.fixture(scope="module")
def model(folder):
    return clip_text(folder / "text_encoder_2", projection=True)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder / "tokenizer_2")


@pytest.fixture(scope="module")
def whole(folder):
    model = save_whole(folder / "whole")
    clip_tokenizer(folder / "whole")
    return model


def load(folder: Path, subfolder: str | None = "text_encoder_2", **settings) -> TextEncoder:
    return load_text_encoder(TextEncoderConfig(path=str(folder), subfolder=subfolder, **settings))


def outputs(model, tokenizer, caption: str, **arguments):
    with torch.inference_mode():
        ids = tokenizer(caption, return_tensors="pt", **arguments)["input_ids"]
        return model(input_ids=ids, output_hidden_states=True)


def close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "layer_norm"), [(-1, False), (-1, True), (-2, False), (-2, True), (-3, False)]
)
@pytest.mark.parametrize("padding", [False, True])
def test_every_layer_is_transformers_own(folder, model, tokenizer, layer, layer_norm, padding):
    encoder = load(folder, layer=layer, layer_norm=layer_norm, padding=padding, max_length=20)
    encoding = encoder.encode(CAPTIONS)
    assert encoder.width == WIDTH
    for row, caption in enumerate(CAPTIONS):
        arguments = {"padding": "max_length", "max_length": 20} if padding else {}
        output = outputs(model, tokenizer, caption, **arguments)
        expected = output.last_hidden_state[0]
        if layer < -1:
            expected = output.hidden_states[layer][0]
        if layer < -1 and layer_norm:
            with torch.inference_mode():
                expected = model.text_model.final_layer_norm(expected)
        assert int(encoding.mask[row].sum()) == len(expected)
        close(encoding.embeddings[row][encoding.mask[row]], expected)
    assert encoding.embeddings.std() > 0.1  # the test would see a wrong layer
    assert not encoding.embeddings.requires_grad


@pytest.mark.parametrize("padding", [False, True])
def test_pooled_outputs_are_transformers_own(folder, model, tokenizer, padding):
    settings = {"padding": padding, "max_length": 20, "layer": -2}
    pooled = load(folder, pooled=Pooled.pooled, **settings)
    projected = load(folder, pooled=Pooled.projected, **settings)
    assert (pooled.pooled_width, projected.pooled_width) == (WIDTH, PROJECTED)
    assert load(folder).pooled_width == 0
    assert load(folder).encode(CAPTIONS).pooled is None
    for row, caption in enumerate(CAPTIONS):
        output = outputs(model, tokenizer, caption)  # the end of a caption sees no padding
        end = output.last_hidden_state[0, -1]
        close(pooled.encode(CAPTIONS).pooled[row], end)
        close(projected.encode(CAPTIONS).pooled[row], output.text_embeds[0])


def test_tokens_are_open_clip_s(folder, model):
    captions = [*CAPTIONS, "Two  Cats\nin HATS: 3,000$ (it's snowing)", "日本 😀 naïve"]
    tokens = load(folder).tokenize(captions)
    for row, expected in zip(tokens.ids, open_clip.tokenize(captions), strict=True):
        assert row[0].tolist() == expected[: row.shape[1]].tolist()
        assert int(expected.argmax()) + 1 == row.shape[1]


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_the_filling_is_the_tokenizer_s(folder, model, tmp_path, pad):
    clip_tokenizer(tmp_path / "tokenizer", pad)
    (tmp_path / "text_encoder").symlink_to(folder / "text_encoder_2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    encoder = load(tmp_path, "text_encoder", padding=True)
    expected = tokenizer(CAPTIONS, padding="max_length", max_length=77)["input_ids"]
    tokens = encoder.tokenize(CAPTIONS)
    assert [row.tolist() for row in tokens.ids] == [[row] for row in expected]
    encoding = encoder.encode(CAPTIONS)
    assert encoding.embeddings.shape == (4, 77, WIDTH)
    assert encoding.mask.all()


def test_a_whole_clip_gives_its_text_half(folder, whole):
    tokenizer = AutoTokenizer.from_pretrained(folder / "whole")
    encoder = load(folder / "whole", None, pooled=Pooled.projected)
    encoding = encoder.encode(CAPTIONS)
    assert encoder.pooled_width == PROJECTED
    for row, caption in enumerate(CAPTIONS):
        output = outputs(whole.text_model, tokenizer, caption)
        close(encoding.embeddings[row][encoding.mask[row]], output.last_hidden_state[0])
        with torch.inference_mode():
            close(encoding.pooled[row], whole.text_projection(output.pooler_output)[0])


def test_the_pooled_place_is_right_with_the_end_of_old_configs(tmp_path):
    model = clip_text(tmp_path, eos_token_id=2)
    clip_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    encoding = load(tmp_path, None, pooled=Pooled.pooled).encode(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        expected = outputs(model, tokenizer, caption)
        close(encoding.pooled[row], expected.last_hidden_state[0, -1])


def test_long_captions_keep_their_end_and_are_counted(folder, model, tokenizer):
    encoder = load(folder, max_length=5, pooled=Pooled.pooled)
    tokens = encoder.tokenize(["one two three", "one two three four", "cat " * 500])
    assert [row.shape for row in tokens.ids] == [(1, 5)] * 3
    assert all(row[0, -1] == tokenizer.eos_token_id for row in tokens.ids)
    assert tokens.truncated == 2
