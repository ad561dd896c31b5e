"""What differs between one kind of training and another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from data.corpus import Corpus
from training.watch import Watch

# Per-sample values of a micro-batch on a device, by a model that is called for them.
Losses = Callable[[nn.Module, Any, torch.device], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Task:
    """What differs between one kind of training and another.

    Args:
        command: Its name.
        model: The plain model with fresh weights, the same on every rank.
        data: What is read.
        collate: Makes the micro-batch of the samples at some places.
        losses: Per-sample values of a micro-batch, (B,) each; `loss` is minimised. Called with the
            wrapped model.
        identity: What decides the result besides settings and data, JSON-ready.
        free: Settings that do not decide it, or whose effect `identity` tells.
        files: Kept with the run, by name.
        watches: What is measured and shown on the way.
    """

    command: str
    model: nn.Module
    data: Corpus
    collate: Callable[[Corpus, range], Any]
    losses: Losses
    identity: Mapping[str, Any] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    watches: tuple[Watch, ...] = ()
