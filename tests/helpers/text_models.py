"""Tiny text models with random weights, in the folders that the real ones come in."""

import gzip
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import bytes_to_unicode, default_bpe
from safetensors.torch import save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    T5Config,
)

CAPTIONS = ["red apple", "", "a very long caption about grinning faces, café and 2 hats!", "a cat"]
WIDTH, LAYERS, PROJECTED = 16, 3, 12
START, END = "<|startoftext|>", "<|endoftext|>"
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "projection_dim": PROJECTED,
}


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights so large that every layer and norm shows in what comes out."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model.eval()


def save(model: PreTrainedModel, folder: Path, **arguments: Any) -> None:
    """As transformers saves a model."""
    model.save_pretrained(folder, **arguments)


def clip_tokenizer(folder: Path, pad: str = END) -> Path:
    """CLIP's tokenizer, in the files of Stable Diffusion's repositories."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(default_bpe()) as opened:
        merges = opened.read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    signs = list(bytes_to_unicode().values())
    words = [*signs, *(f"{sign}</w>" for sign in signs), *(m.replace(" ", "") for m in merges)]
    vocabulary = {word: number for number, word in enumerate([*words, START, END])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    tokens: dict[str, Any] = {
        name: {"content": content, **flags}
        for name, content in {"bos_token": START, "eos_token": END, "unk_token": END}.items()
    }
    tokens["pad_token"] = pad
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
        "pad_token": pad,
        **{
            name: {"__type": "AddedToken", **tokens[name]} for name in tokens if name != "pad_token"
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    return folder


def clip_text(folder: Path, projection: bool = False, seed: int = 0, **changes: Any) -> Any:
    """A CLIP text model in `folder`, without its tokenizer; returns the model."""
    config = CLIPTextConfig(**{**TEXT, "bos_token_id": 49406, "eos_token_id": 49407, **changes})
    cls = CLIPTextModelWithProjection if projection else CLIPTextModel
    model = randomize(cls(config), seed)
    save(model, folder)
    return model


def clip_whole(folder: Path) -> CLIPModel:
    """A CLIP of both halves, whose text half repeats the width of its projection wrongly."""
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "patch_size": 16}
    vision |= {"num_attention_heads": 2, "image_size": 32}
    text = {**TEXT, "projection_dim": 999, "bos_token_id": 49406, "eos_token_id": 49407}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTED)
    model = randomize(CLIPModel(config))
    save(model, folder)
    return model


T5_SIZES = {
    "vocab_size": 160,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 3,
    "num_heads": 2,
}


def t5_config(**changes: Any) -> T5Config:
    """Sizes of a tiny T5 of the newer kind."""
    return T5Config(**{**T5_SIZES, "feed_forward_proj": "gated-gelu", **changes})


def t5_tokenizer(folder: Path) -> Path:
    """A fast tokenizer of letters and a few words, with T5's special tokens and no length."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["▁", "▁a", "▁red", "▁cat", "apple", "▁long", "é", "!", ",", "2"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(word, -2.0) for word in words] + [(letter, -5.0) for letter in letters]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "T5TokenizerFast", "model_max_length": 512, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "extra_ids": 0}))
    return folder


def open_clip_model(
    folder: Path, seed: int = 0, custom: bool = False, text: dict[str, Any] | None = None
) -> Any:
    """An open_clip model in `folder`, as its hub has it; returns the model."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        "embed_dim": PROJECTED,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"width": WIDTH, "heads": 2, "layers": LAYERS, **(text or {})},
    }
    cls = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model = randomize(cls(**sizes), seed)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    if custom:
        sizes["custom_text"] = True
    config = {"model_cfg": sizes, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return model
