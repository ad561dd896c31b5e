"""Captions to token ids: the tokenizers of transformers and open_clip, with one face."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from training.models.text.checks import MISSING

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
UNLIMITED = 1_000_000  # transformers writes 1e30 where a tokenizer has no longest length


class TransformersTokenizer:
    """A tokenizer of transformers; see `Tokenizer` for its attributes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.pad_id: int | None = tokenizer.pad_token_id
        self.least: int = tokenizer.num_special_tokens_to_add() + 1
        longest = tokenizer.model_max_length
        self.most: int | None = longest if longest < UNLIMITED else None
        self.largest_id: int = max(tokenizer.get_vocab().values())

    def tokenize(self, captions: list[str], max_length: int) -> tuple[list[list[int]], list[bool]]:
        """Ids of each caption, `max_length` at most, and whether it was cut."""
        # First uncut, because slow tokenizers do not tell what they cut.
        ids = self._ids(captions, verbose=False)
        cut = [len(row) > max_length for row in ids]
        places = [place for place, is_cut in enumerate(cut) if is_cut]
        if places:
            long = [captions[place] for place in places]
            shorter = self._ids(long, truncation=True, max_length=max_length)
            for place, row in zip(places, shorter, strict=True):
                ids[place] = row
        return ids, cut

    def _ids(self, captions: list[str], **arguments: Any) -> list[list[int]]:
        return self._tokenizer(
            captions, return_attention_mask=False, return_token_type_ids=False, **arguments
        )["input_ids"]


class OpenClipTokenizer:
    """CLIP's tokenizer as open_clip has it, with the vocabulary that its package ships.

    Args:
        tokenizer: An open_clip `SimpleTokenizer`.
        context_length: Longest caption in tokens that its model was made for.
    """

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self._tokenizer = tokenizer
        self.pad_id: int | None = 0
        self.least = 3
        self.most: int | None = context_length
        self.largest_id: int = tokenizer.vocab_size - 1

    def tokenize(self, captions: list[str], max_length: int) -> tuple[list[list[int]], list[bool]]:
        """Ids of each caption, `max_length` at most, and whether it was cut."""
        start, end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        words = [self._tokenizer.encode(caption) for caption in captions]
        cut = [len(row) + 2 > max_length for row in words]
        return [[start, *row[: max_length - 2], end] for row in words], cut


def load_tokenizer(folder: Path) -> TransformersTokenizer:
    """The transformers tokenizer of a folder.

    Raises:
        ValueError: There is none, or its files cannot make one.
    """
    if not any(file.is_file() for name in VOCABULARIES for file in folder.glob(name)):
        raise ValueError(MISSING)
    # transformers would make up merges of its own, which give other tokens.
    names = {file.name for file in folder.iterdir()}
    if "vocab.json" in names and not names & {"merges.txt", "tokenizer.json"}:
        raise ValueError("has a vocab.json without merges.txt")
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, padding_side="right"
    )
    if not tokenizer("")["input_ids"]:
        raise ValueError("has a tokenizer that gives no token for the empty caption")
    return TransformersTokenizer(tokenizer)
