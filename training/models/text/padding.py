"""Keeps a caption's words apart from what fills up its row, in models that look both ways."""

import torch
from torch import Tensor, nn

from training.models.text.checks import Refused

TOLERANCE = 1e-3  # of the largest number: far above rounding, far below what a leak does


def additive_mask(mask: Tensor) -> Tensor:
    """What is added to attention, (B, 1, L, L), for real tokens' mask (B, L).

    Given a mask of two dimensions, transformers leaves out one that is all ones, and computes in
    another way: what a caption gets would depend on those beside it.
    """
    length = mask.shape[1]
    hidden_keys = ~mask[:, None, None, :].expand(-1, 1, length, -1)
    added = torch.zeros(hidden_keys.shape, device=mask.device)
    return added.masked_fill(hidden_keys, torch.finfo(added.dtype).min)


def settle_mask(tower: nn.Module, kind: str, num_ids: int, pad_id: int | None) -> None:
    """Finds the form of mask that a model heeds, by trying it, and sets `tower.has_additive_mask`.

    Args:
        tower: Takes ids and a mask; see `TextModel.tower`.
        kind: What the model is called.
        num_ids: Token ids that it knows.
        pad_id: The one that fills up rows.

    Raises:
        Refused: Words change with what follows them, whatever the mask.
    """
    for is_additive in (True, False):
        tower.has_additive_mask = is_additive
        try:
            if _is_apart(tower, num_ids, pad_id or 0):
                return
        except Exception:  # DeBERTa and some more take masks of two dimensions alone
            continue
    wrong = f"is a {kind} model, whose words change with what fills up their row"
    raise Refused(None, wrong, "name another encoder, such as BERT, CLIP or T5")


@torch.inference_mode()
def _is_apart(tower: nn.Module, num_ids: int, pad_id: int) -> bool:
    """Whether a few words get the same alone and in a row that is filled up."""
    words = torch.tensor([[place for place in range(num_ids) if place != pad_id][-4:]])
    filled = torch.cat([words, torch.full_like(words, pad_id)], 1)
    alone, _ = tower(words, torch.ones_like(words, dtype=torch.bool))
    together, _ = tower(filled, torch.arange(filled.shape[1])[None] < words.shape[1])
    difference = (together[:, : words.shape[1]] - alone).abs().max()
    return bool(difference <= TOLERANCE * alone.abs().max())
