from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import T5EncoderModel

from conf.encoders import TextEncoderConfig, TextModelConfig
from conf.enums import Pooled
from conf.errors import UserError
from tests.helpers.text_models import (
    CAPTIONS,
    PROJECTED,
    WIDTH,
    clip_text,
    clip_tokenizer,
    open_clip_model,
    randomize,
    save,
    t5_config,
    t5_tokenizer,
)
from training.models.text import TextEncoder, load_text_encoder


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory) -> Path:
    """Two text models side by side, as SDXL has them, with their own fillings."""
    root = tmp_path_factory.mktemp("sdxl")
    clip_text(root / "text_encoder")
    clip_tokenizer(root / "tokenizer")
    clip_text(root / "text_encoder_2", projection=True, seed=1, hidden_size=24, hidden_act="gelu")
    clip_tokenizer(root / "tokenizer_2", pad="!")
    open_clip_model(root / "open_clip", seed=2)
    return root


def load(first: dict, *others: dict, max_length: int = 20, padding: bool = False) -> TextEncoder:
    return load_text_encoder(
        TextEncoderConfig(
            **first,
            joined=[TextModelConfig(**other) for other in others],
            max_length=max_length,
            padding=padding,
        )
    )


def parts(root: Path) -> tuple[dict, dict, dict]:
    first = {"path": str(root), "subfolder": "text_encoder", "layer": -2}
    second = {**first, "subfolder": "text_encoder_2", "pooled": Pooled.projected}
    return first, second, {"path": str(root / "open_clip"), "layer": -2, "pooled": Pooled.pooled}


@pytest.mark.parametrize("padding", [False, True])
def test_embeddings_stand_side_by_side_and_so_does_what_is_pooled(sdxl, padding):
    models = parts(sdxl)
    joined = load(*models, padding=padding)
    assert (joined.width, joined.pooled_width) == (2 * WIDTH + 24, PROJECTED + WIDTH)
    alone = [load(model, padding=padding).encode(CAPTIONS) for model in models]
    encoding = joined.encode(CAPTIONS)
    torch.testing.assert_close(
        encoding.embeddings, torch.cat([one.embeddings for one in alone], -1)
    )
    torch.testing.assert_close(encoding.pooled, torch.cat([one.pooled for one in alone[1:]], -1))
    assert torch.equal(encoding.mask, alone[0].mask)


def test_each_model_has_its_own_ids(sdxl):
    joined = load(*parts(sdxl), padding=True)
    ids = joined.tokenize(["red apple"]).ids[0]
    assert ids.shape == (3, 20) and ids.dtype == np.int32
    assert ids[:, :4].tolist() == [ids[0, :4].tolist()] * 3
    assert ids[:, 4:].tolist() == [[49407] * 16, [0] * 16, [0] * 16]
    short = load(*parts(sdxl))
    assert [row.shape for row in short.tokenize(CAPTIONS).ids] == [(3, 4), (3, 2), (3, 16), (3, 4)]
    assert short.tokenize(["one " * 30, "one"]).truncated == 1


def test_tokenizers_that_disagree_are_refused_before_hours_go_by(sdxl, tmp_path):
    save(randomize(T5EncoderModel(t5_config())), tmp_path)
    t5_tokenizer(tmp_path)
    t5 = {"path": str(tmp_path)}
    with pytest.raises(UserError, match="tokenizers give '' 2 and 1 tokens") as caught:
        load(parts(sdxl)[0], t5)
    assert caught.value.setting == "text_encoder.joined"
    filled = load(parts(sdxl)[0], t5, padding=True)
    assert filled.encode(CAPTIONS).embeddings.shape == (4, 20, 32)
    # Cut by the second alone, which spells it out; cut by both; cut by none.
    assert filled.tokenize(["elephants and giraffes", "one " * 30, "cat"]).truncated == 2


def test_a_caption_that_they_disagree_on_later_is_named(sdxl):
    first, second, opened = parts(sdxl)
    encoder = load(first, second, opened)
    with pytest.raises(UserError, match="give 'a &amp; b' 7 and 7 and 5 tokens"):
        encoder.encode(["a &amp; b"])  # open_clip reads HTML


def test_a_joined_model_s_fault_is_named_by_its_place(sdxl):
    first, second, _ = parts(sdxl)
    with pytest.raises(UserError) as caught:
        load(first, second, {"path": "/nowhere"})
    assert caught.value.setting == "text_encoder.joined[1].path=/nowhere"
    with pytest.raises(UserError) as caught:
        load(first, {**second, "layer": -9})
    assert caught.value.setting == "text_encoder.joined[0].layer=-9"
