"""Bytes that a forward pass keeps for the way back: counted on the meta device, tensor by tensor.

Owns what autocast and fused kernels do on the device that is planned for, since the meta device has
neither. Refuses to guess the rest: workspaces and the gradients in flight are no part of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from conf.enums import Precision
from training.device import DTYPES
from training.models.layers import ResBlock, SpatialTransformer
from training.perf import meta_copy
from training.recompute import recompute_blocks

# What autocast computes in 16 bits, and on CUDA in 32: of its lists, what our networks call.
# Source: PyTorch's documentation of torch.amp, "CUDA/CPU Op-Specific Behavior".
LOW = (F.linear, F.conv2d, F.scaled_dot_product_attention)
HIGH_ON_CUDA = (F.group_norm, F.layer_norm)


def kept_bytes(
    model: nn.Module,
    call: Callable[[nn.Module], Tensor],
    precision: Precision,
    device: str,
    recompute: bool = False,
) -> int:
    """The most that one forward pass keeps for its backward pass.

    With recomputing, what goes into blocks and what is outside of them, and the inside of the block
    that keeps most, which is there while it is computed again.

    Args:
        model: On the meta device, in the layout that it would have.
        call: Calls a copy of it for a micro-batch.
        precision: 16 bits are autocast, as training does it.
        device: `cuda` or `cpu`: where it would run.
        recompute: Whether `engine.recompute` is on.
    """
    kept, blocks = _pass(meta_copy(model), call, precision, device)
    if not recompute:
        return kept
    light = meta_copy(model)
    recompute_blocks(light)
    return _pass(light, call, precision, device)[0] + max(blocks, default=0)


def _pass(
    model: nn.Module, call: Callable[[nn.Module], Tensor], precision: Precision, device: str
) -> tuple[int, list[int]]:
    """Bytes that a forward pass keeps, and those within each block."""
    counter = _Counter(model)
    blocks = _watch_blocks(model, counter)
    with counter.hooks(), _OnDevice(precision, device):
        call(model)
    return counter.bytes, blocks


@dataclass
class _Counter:
    """Sums the storages that are saved, each once, and not the model's own."""

    model: nn.Module
    bytes: int = 0
    _seen: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            self._first_time(tensor)

    def _first_time(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return False
        self._seen[storage._cdata] = storage  # kept, so that no other takes its address
        return True

    def _pack(self, tensor: Tensor) -> Tensor:
        if self._first_time(tensor):
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor

    def hooks(self) -> Any:
        """A context in which what is saved is counted."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)


def _watch_blocks(model: nn.Module, counter: _Counter) -> list[int]:
    """A list that comes to hold the bytes that each block has kept."""
    found: list[int] = []
    for module in model.modules():
        if isinstance(module, ResBlock | SpatialTransformer):
            module.register_forward_pre_hook(lambda *_: found.append(-counter.bytes))
            module.register_forward_hook(lambda *_: found.append(found.pop() + counter.bytes))
    return found


class _OnDevice(TorchFunctionMode):
    """Has the meta device keep what another one would: number formats, and no matrix of attention.

    A fused attention keeps queries, keys, values, mask, result, and one float32 a row.
    Source: Dao et al. 2022 (arXiv:2205.14135), algorithm 1.
    """

    def __init__(self, precision: Precision, device: str) -> None:
        super().__init__()
        self._autocast, self._device = precision is not Precision.fp32, device
        self._low = DTYPES[precision]
        self._cast: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Computes one operation in the device's way."""
        kwargs = kwargs or {}
        if self._autocast and func in LOW:
            args, kwargs = self._to((args, kwargs), self._low)
        elif self._autocast and func in HIGH_ON_CUDA and self._device == "cuda":
            args, kwargs = self._to((args, kwargs), torch.float32)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is F.group_norm and self._device == "cpu":
            # CUDA copies what is channels_last, and so does the meta device; the CPU does not.
            images, groups = args[:2]
            rows = images.new_empty(2, images.shape[0] * groups)
            return _Fused.apply(lambda: torch.empty_like(images), False, images, *args[2:3], rows)
        return func(*args, **kwargs)

    def _to(self, given: Any, dtype: torch.dtype) -> Any:
        """Floats of another format, the model's own once, as autocast's cache has it."""

        def cast(value: Any) -> Any:
            wrong = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != dtype
            if not wrong:
                return value
            if not value.is_leaf or not value.requires_grad:
                return value.to(dtype)
            if id(value) not in self._cast:
                self._cast[id(value)] = value, value.to(dtype)
            return self._cast[id(value)][1]

        return torch.utils._pytree.tree_map(cast, given)


class _Fused(torch.autograd.Function):
    """A kernel that is known by what comes out and by what it keeps; it computes nothing."""

    @staticmethod
    def forward(
        ctx: Any, answer: Callable[[], Tensor], keeps_answer: bool, *kept: Tensor
    ) -> Tensor:
        """Keeps tensors, and perhaps the answer, for a way back that nobody goes."""
        result = answer()
        ctx.save_for_backward(*kept, *([result] if keeps_answer else []))
        return result


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """Attention of (B, heads, N, D), whose result lies in memory as (B, N, heads, D)."""
    batch, heads, length, _ = query.shape
    rows = query.new_empty(batch, heads, length, dtype=torch.float32)
    mask = [] if attn_mask is None else [torch.empty_like(attn_mask, dtype=query.dtype)]

    def answer() -> Tensor:
        return query.new_empty(batch, length, heads, value.shape[3]).transpose(1, 2)

    return _Fused.apply(answer, True, query, key, value, *mask, rows)
