from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    MT5Config,
    MT5EncoderModel,
    T5EncoderModel,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5EncoderModel,
)

from conf.encoders import TextEncoderConfig
from tests.helpers.text_models import (
    CAPTIONS,
    T5_SIZES,
    randomize,
    save,
    t5_config,
    t5_tokenizer,
)
from training.models.text import TextEncoder, load_text_encoder

MODELS = {
    "t5": lambda: T5EncoderModel(t5_config()),
    "old_t5": lambda: T5EncoderModel(t5_config(feed_forward_proj="relu")),
    "mt5": lambda: MT5EncoderModel(MT5Config(**T5_SIZES)),
    "umt5": lambda: UMT5EncoderModel(UMT5Config(**T5_SIZES)),
}


def load(folder: Path, **settings) -> TextEncoder:
    return load_text_encoder(TextEncoderConfig(path=str(folder), **settings))


def check(encoder: TextEncoder, model, folder: Path, layer: int = -1, norm: bool = False) -> None:
    """Its embeddings are those of `model`, called with one caption at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoding = encoder.encode(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        ids = tokenizer(caption, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            output = model.encoder(input_ids=ids, output_hidden_states=True)
            expected = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
            if norm:
                expected = model.encoder.final_layer_norm(expected)
        actual = encoding.embeddings[row][encoding.mask[row]]
        torch.testing.assert_close(actual, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_are_transformers_own_one_caption_at_a_time(tmp_path, name):
    model = randomize(MODELS[name]())
    save(model, tmp_path)
    t5_tokenizer(tmp_path)
    check(load(tmp_path), model, tmp_path)
    check(load(tmp_path, layer=-2), model, tmp_path, -2)
    check(load(tmp_path, layer=-2, layer_norm=True), model, tmp_path, -2, norm=True)


def test_a_whole_t5_gives_its_encoder(tmp_path):
    model = randomize(T5ForConditionalGeneration(t5_config(tie_word_embeddings=False)))
    save(model, tmp_path)
    t5_tokenizer(tmp_path)
    encoder = load(tmp_path)
    check(encoder, model, tmp_path)
    assert not any("decoder" in name for name, _ in encoder._models[0].tower.named_parameters())


@pytest.mark.parametrize("kept", ["shared.weight", "encoder.embed_tokens.weight"])
def test_the_shared_embedding_may_have_either_name(tmp_path, kept):
    model = randomize(T5EncoderModel(t5_config()))
    save(model, tmp_path)
    t5_tokenizer(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    shared = weights.pop("shared.weight", weights.pop("encoder.embed_tokens.weight", None))
    save_file({**weights, kept: model.shared.weight.data.clone()}, file, {"format": "pt"})
    assert shared is not None
    check(load(tmp_path), model, tmp_path)


def test_captions_may_be_longer_than_the_tokenizer_s_habit(tmp_path):
    save(randomize(T5EncoderModel(t5_config())), tmp_path)
    t5_tokenizer(tmp_path)
    encoder = load(tmp_path, max_length=700)
    encoding = encoder.encode(["a cat " * 1000, "a cat"])
    assert encoding.mask.sum(1).tolist() == [700, 3]
    assert encoding.truncated == 1
    assert encoder.tokenize(["a cat " * 1000]).ids[0][0, -1] == 1  # its end


def test_padding_is_used_as_words_are_only_where_asked_for(tmp_path):
    model = randomize(T5EncoderModel(t5_config()))
    save(model, tmp_path)
    t5_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    encoding = load(tmp_path, padding=True, max_length=40).encode(CAPTIONS)
    ids = tokenizer(CAPTIONS, padding="max_length", max_length=40, truncation=True)["input_ids"]
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor(ids)).last_hidden_state
    torch.testing.assert_close(encoding.embeddings, expected, rtol=1e-5, atol=1e-5)
    alone = load(tmp_path, max_length=40).encode(CAPTIONS)
    assert not torch.allclose(encoding.embeddings[0, :2], alone.embeddings[0, :2], atol=1e-2)


def test_a_tokenizer_of_sentencepiece_alone_is_read(tmp_path):
    import sentencepiece

    (tmp_path / "words.txt").write_text("a cat and a hat\nred apple long caption\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "words.txt"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=20,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    model = randomize(T5EncoderModel(t5_config()))
    save(model, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    (tmp_path / "spiece.vocab").unlink()
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    tokens = load(tmp_path).tokenize(["a red cat", ""])
    assert [row[0].tolist() for row in tokens.ids] == [[*own.encode("a red cat"), 1], [1]]
