"""A tiny BERT that knows letters and a few words: a text encoder that loads in no time."""

import json
from pathlib import Path

from transformers import BertConfig, BertModel

from tests.helpers.text_models import randomize, save

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "caption", "red", "cat", "dog", "a", "hat"]
WIDTH = 12


def tiny_bert(folder: Path, seed: int = 0) -> Path:
    """Its weights, config and tokenizer in `folder`."""
    folder.mkdir(parents=True)
    signs = [chr(code) for code in [*range(ord("0"), ord("9") + 1), *range(ord("b"), ord("z") + 1)]]
    words = [*WORDS, *signs, *(f"##{sign}" for sign in signs), "##a"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    sizes = BertConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    save(randomize(BertModel(sizes), seed), folder)
    return folder
