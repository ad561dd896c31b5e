import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from conf.encoders import TextEncoderConfig
from conf.enums import Pooled
from conf.errors import UserError
from tests.helpers.text_models import CAPTIONS, PROJECTED, TEXT, WIDTH, open_clip_model
from training.models.text import TextEncoder, load_text_encoder

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


def load(folder: Path, **settings) -> TextEncoder:
    return load_text_encoder(TextEncoderConfig(path=str(folder), **settings))


def close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def converted(weights: dict[str, Tensor]) -> CLIPTextModelWithProjection:
    """The same weights in transformers' model."""
    sizes = {**TEXT, "hidden_act": "gelu", "intermediate_size": 4 * WIDTH, "eos_token_id": 49407}
    model = CLIPTextModelWithProjection(CLIPTextConfig(**sizes)).eval()
    state = {
        "text_projection.weight": weights["text_projection"].T,
        "text_model.embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": weights["positional_embedding"],
    }
    for end in ("weight", "bias"):
        state[f"text_model.final_layer_norm.{end}"] = weights[f"ln_final.{end}"]
        for i in range(TEXT["num_hidden_layers"]):
            old, new = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
            joined = weights[f"{old}.attn.in_proj_{end}"].chunk(3)
            for name, part in zip("qkv", joined, strict=True):
                state[f"{new}.self_attn.{name}_proj.{end}"] = part
            for before, after in {
                "attn.out_proj": "self_attn.out_proj",
                "ln_1": "layer_norm1",
                "ln_2": "layer_norm2",
                "mlp.c_fc": "mlp.fc1",
                "mlp.c_proj": "mlp.fc2",
            }.items():
                state[f"{new}.{after}.{end}"] = weights[f"{old}.{before}.{end}"]
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("padding", [False, True])
def test_the_same_weights_give_what_transformers_gives(tmp_path, custom, padding):
    open_clip_model(tmp_path, custom=custom)
    weights = load_file(tmp_path / WEIGHTS)
    model = converted({name.removeprefix("text."): w for name, w in weights.items()})
    for layer, layer_norm in [(-1, False), (-2, False), (-2, True), (-3, True)]:
        settings = {"layer": layer, "layer_norm": layer_norm, "padding": padding}
        encoding = load(tmp_path, **settings).encode(CAPTIONS)
        with_pooled = load(tmp_path, pooled=Pooled.projected, **settings).encode(CAPTIONS)
        for row, ids in enumerate(open_clip.tokenize(CAPTIONS)):
            length = 77 if padding else int(ids.argmax()) + 1
            with torch.inference_mode():
                output = model(input_ids=ids[None, :length], output_hidden_states=True)
                expected = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
                if layer < -1 and layer_norm:
                    expected = model.text_model.final_layer_norm(expected)
            assert encoding.mask[row].sum() == length
            close(encoding.embeddings[row, :length], expected[0])
            close(with_pooled.embeddings[row, :length], expected[0])
            close(with_pooled.pooled[row], output.text_embeds[0])


@pytest.mark.parametrize("custom", [False, True])
def test_projected_is_open_clip_s_own_and_pooled_is_what_it_projects(tmp_path, custom):
    model = open_clip_model(tmp_path, custom=custom)
    with torch.inference_mode():
        expected = torch.cat([model.encode_text(open_clip.tokenize(c)) for c in CAPTIONS])
    projected = load(tmp_path, layer=-2, pooled=Pooled.projected)
    pooled = load(tmp_path, layer=-2, pooled=Pooled.pooled)
    assert (projected.pooled_width, pooled.pooled_width) == (PROJECTED, WIDTH)
    close(projected.encode(CAPTIONS).pooled, expected)
    projection = (model.text if custom else model).text_projection.detach()
    close(pooled.encode(CAPTIONS).pooled @ projection, expected)


def test_tokens_are_open_clip_s_own(tmp_path):
    open_clip_model(tmp_path)
    captions = [*CAPTIONS, "one " * 200, "&amp; caf\u00e9   x"]
    tokens = load(tmp_path, padding=True).tokenize(captions)
    expected = open_clip.tokenize(captions)
    assert [row[0].tolist() for row in tokens.ids] == expected.tolist()
    assert tokens.truncated == 1


def test_loading_draws_nothing_from_global_state_and_reads_no_vision(tmp_path):
    open_clip_model(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    bare = {name: w.half() for name, w in weights.items() if not name.startswith("visual.")}
    save_file(bare, tmp_path / WEIGHTS)
    before = torch.get_rng_state()
    encoder = load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder.encode(CAPTIONS).embeddings.dtype == torch.float32
    assert not any(w.requires_grad for w in encoder._models[0].tower.parameters())


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ({"hf_model_name": "roberta-base"}, "hf_model_name is roberta-base"),
        ({"hf_tokenizer_name": "bert-base"}, "hf_tokenizer_name is bert-base"),
        ({"no_causal_mask": True}, "no_causal_mask is True"),
        ({"pool_type": "last"}, "pool_type is last"),
        ({"embed_cls": True}, "embed_cls is True"),
        ({"tokenizer_kwargs": {"reduction_mask": "simple"}}, "tokenizer with reduction_mask"),
        ({"unheard_of": 1}, "cannot be loaded: .*unheard_of"),
    ],
)
def test_a_text_half_that_is_not_clip_s_is_refused(tmp_path, text, wrong):
    open_clip_model(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    config["model_cfg"]["text_cfg"] |= text
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=wrong) as caught:
        load(tmp_path)
    assert caught.value.setting == f"text_encoder.path={tmp_path}"


def test_weights_that_are_missing_are_refused_unless_they_are_not_used(tmp_path):
    open_clip_model(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    save_file({k: w for k, w in weights.items() if k != "text_projection"}, tmp_path / WEIGHTS)
    load(tmp_path, pooled=Pooled.pooled).to("cpu").encode(["one"])
    with pytest.raises(UserError, match=r"lacks 1 weights \(text_projection"):
        load(tmp_path, pooled=Pooled.projected)
    save_file({k: w for k, w in weights.items() if "mlp.c_fc" not in k}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"lacks 6 weights \(transformer.resblocks.0.mlp.c_fc"):
        load(tmp_path)


def test_a_model_without_projection_or_config_is_refused(tmp_path):
    open_clip_model(tmp_path, text={"proj_type": "none"}, custom=True)
    with pytest.raises(UserError, match="no projection") as caught:
        load(tmp_path, pooled=Pooled.projected)
    assert caught.value.setting == "text_encoder.pooled=projected"
    with pytest.raises(UserError, match="has 3 layers"):
        load(tmp_path, layer=-4)
    with pytest.raises(UserError, match="3 to 77"):
        load(tmp_path, max_length=78)
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(UserError, match="without text_cfg"):
        load(tmp_path)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(UserError, match=r"has no open_clip_config\.json"):
        load(tmp_path)


def test_torchvision_and_open_clip_import_here():
    import torchvision

    assert torchvision.transforms
