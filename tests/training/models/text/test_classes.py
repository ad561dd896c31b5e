from pathlib import Path

import pytest
import torch

from conf.encoders import TextEncoderConfig
from conf.errors import UserError
from training.models.classes import numbers_of
from training.models.text import (
    TextEncoder,
    absolute_path,
    fingerprint_text_encoder,
    load_text_encoder,
)


def config(path: str) -> TextEncoderConfig:
    return TextEncoderConfig(path=path, max_length=1)


def load(path: str) -> TextEncoder:
    return load_text_encoder(config(path))


def numbers(encoder: TextEncoder, *captions: str) -> list[int]:
    encoding = encoder.encode(list(captions))
    assert encoding.embeddings.shape == (len(captions), 1, encoder.width)
    assert bool(encoding.mask.all()) and encoding.truncated == 0
    return numbers_of(encoding.embeddings)[:, 0].tolist()


@pytest.fixture
def names(tmp_path: Path) -> Path:
    file = tmp_path / "names.txt"
    file.write_text("tench\ngoldfish\ngreat white shark, Carcharodon\n", encoding="utf-8")
    return file


def test_a_caption_is_a_number_and_none_is_the_number_after_the_last() -> None:
    encoder = load("classes://1000")
    assert encoder.classes == 1000
    assert numbers(encoder, "207", " 0\n", "999", "") == [207, 0, 999, 1000]


def test_a_caption_is_a_line_of_a_file_or_its_number(names: Path) -> None:
    encoder = load(f"classes://{names}")
    assert encoder.classes == 3
    assert numbers(encoder, "great white shark, Carcharodon", "1", "tench", "") == [2, 1, 0, 3]


def test_where_names_are_numbers_a_number_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "digits.txt").write_text("1\n0\n")
    encoder = load(f"classes://{tmp_path}/digits.txt")
    assert numbers(encoder, "1", "0") == [0, 1]


@pytest.mark.parametrize("caption", ["1000", "-1", "07", "1.0", "a cat"])
def test_what_is_no_class_is_refused_by_name(caption: str) -> None:
    with pytest.raises(UserError, match=rf"has no class '{caption}'; give a number from 0 to 999"):
        load("classes://1000").encode(["3", caption])


def test_a_name_that_is_nearly_one_is_told(names: Path) -> None:
    with pytest.raises(UserError, match="has no class 'gold fish'; did you mean 'goldfish'"):
        load(f"classes://{names}").encode(["gold fish"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\n\nb\n", "empty or there twice: 2"),
        (b"a\nb\na\n", "empty or there twice: 3, 'a'"),
        (b"", "empty or there twice: 1"),
        (b"\xff\n", "cannot be read"),
        (b"\n".join(b"%d" % i for i in range(65_536)), "65,536 lines"),
    ],
)
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        load(f"classes://{tmp_path}/names.txt")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"text_encoder\.path=classes://.*cannot be read"):
        load(f"classes://{tmp_path}/none.txt")


def test_the_fingerprint_is_of_count_and_names(names: Path, tmp_path: Path) -> None:
    same = tmp_path / "same.txt"
    same.write_bytes(names.read_bytes())
    others = [f"classes://{names}", "classes://3", "classes://4"]
    prints = [fingerprint_text_encoder(config(path)) for path in others]
    assert prints == [load(path).fingerprint for path in others]
    assert len({*prints}) == 3
    assert load(f"classes://{same}").fingerprint == prints[0]


def test_a_path_reads_from_anywhere(names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(names.parent)
    assert absolute_path("classes://names.txt") == f"classes://{names.resolve()}"
    assert absolute_path("classes://3") == "classes://3"


def test_the_result_can_enter_a_graph() -> None:
    embeddings = load("classes://3").encode(["1"]).embeddings
    (embeddings * torch.ones(2, requires_grad=True)).sum().backward()
