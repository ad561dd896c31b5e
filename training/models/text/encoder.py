"""Captions to token ids to embeddings, by one text model or by several side by side."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conf.errors import UserError
from training.models.text.records import TextEncoding, TextModel, Tokens


class TextEncoder:
    """Frozen text models with their tokenizers; `load_text_encoder` makes it.

    Args:
        models: At least one, in the order in which their embeddings are appended.
        max_length: Longest caption in tokens.
        padding: Whether captions are filled up to `max_length`, and the filling used as words are.
        fingerprint: See below.
        setting: The setting that names it, for messages.

    Attributes:
        fingerprint: SHA-256 of the files it was loaded from, and of the settings that change its
            numbers, but for `max_length`.
        width: Width of the embeddings, all models' together.
        pooled_width: Width of what is pooled, all models' together; 0 where nothing is.
        max_length: Longest caption in tokens.
        padding: Whether every caption takes `max_length` tokens.
        classes: Classes that captions are; 0 where they are words.
    """

    def __init__(
        self,
        models: Sequence[TextModel],
        max_length: int,
        padding: bool,
        fingerprint: str,
        setting: str = "text_encoder",
    ) -> None:
        self._models = tuple(models)
        self._setting = setting
        self._device = torch.device("cpu")
        self.max_length = max_length
        self.padding = padding
        self.fingerprint = fingerprint
        self.width = sum(model.width for model in models)
        self.classes = models[0].classes
        self.pooled_width = sum(model.pooled_width for model in models)

    def to(self, device: torch.device | str) -> "TextEncoder":
        """Moves the weights to `device`, where the results will be too; returns itself."""
        self._device = torch.device(device)
        for model in self._models:
            model.tower.to(self._device)
        return self

    def encode(self, captions: list[str]) -> TextEncoding:
        """Encodes captions; what one gets does not depend on the others, up to rounding.

        Raises:
            UserError: Joined models' tokenizers disagree, or a caption is no class.
        """
        tokens = self.tokenize(captions)
        encoding = self.embed(tokens.ids)
        return TextEncoding(encoding.embeddings, encoding.mask, tokens.truncated, encoding.pooled)

    def tokenize(self, captions: list[str]) -> Tokens:
        """Token ids of captions.

        Raises:
            UserError: Joined models' tokenizers give a caption different numbers of tokens, or a
                caption is no class.
        """
        rows, cuts = [], []
        for model in self._models:
            ids, cut = model.tokenizer.tokenize(captions, self.max_length)
            if self.padding:
                ids = [[*row, *[_pad(model)] * (self.max_length - len(row))] for row in ids]
            rows.append(ids)
            cuts.append(cut)
        for caption, together in zip(captions, zip(*rows, strict=True), strict=True):
            lengths = [len(row) for row in together]
            if len(set(lengths)) > 1:
                raise UserError(
                    f"{self._setting}.joined",
                    f"the tokenizers give {caption!r} {' and '.join(map(str, lengths))} tokens",
                    "join models of one tokenizer, or choose padding=true",
                )
        ids = [np.array(together, dtype=np.int32) for together in zip(*rows, strict=True)]
        return Tokens(ids, sum(any(cut) for cut in zip(*cuts, strict=True)))

    def embed(self, ids: Sequence[NDArray[np.int32]], length: int | None = None) -> TextEncoding:
        """Embeddings of captions' token ids.

        Args:
            ids: As `tokenize` gives them, (E, L) each; at least one.
            length: L, to which all are padded before a model runs; None is the longest caption's.

        Raises:
            ValueError: `length` is less than a caption has.
        """
        lengths = torch.tensor([row.shape[1] for row in ids])
        longest = int(lengths.max())
        length = longest if length is None else length
        if length < longest:
            raise ValueError(f"a caption has {longest} tokens, more than length={length}")
        assert not self.padding or bool((lengths == self.max_length).all())
        mask = (torch.arange(length) < lengths[:, None]).to(self._device)
        embeddings, pooled = self._run(ids, mask)
        # Out of inference mode, so that the result may enter a graph that is differentiated.
        embeddings = embeddings.masked_fill(~mask[:, :, None], 0.0)
        return TextEncoding(embeddings, mask, 0, pooled.clone() if pooled is not None else None)

    @torch.inference_mode()
    def _run(self, ids: Sequence[NDArray[np.int32]], mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeddings (B, L, width) float32 with anything at padding, and what is pooled."""
        embeddings, pooled = [], []
        for place, model in enumerate(self._models):
            filled = np.full(tuple(mask.shape), _pad(model), dtype=np.int64)
            for row, caption in zip(filled, ids, strict=True):
                row[: caption.shape[1]] = caption[place]
            # Where the filling is used as words are, no model is told of it; but what goes beyond
            # `max_length` is no part of any caption.
            is_whole = self.padding and mask.shape[1] == self.max_length
            hidden, vector = model.tower(
                torch.from_numpy(filled).to(self._device), None if is_whole else mask
            )
            embeddings.append(hidden.float())
            if vector is not None:
                pooled.append(vector.float())
        return torch.cat(embeddings, -1), torch.cat(pooled, -1) if pooled else None


def _pad(model: TextModel) -> int:
    return 0 if model.tokenizer.pad_id is None else model.tokenizer.pad_id
