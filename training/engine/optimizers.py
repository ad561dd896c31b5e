"""AdamW with moments in float32 or in 8 bits, and the names of its state."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from conf.enums import OptimizerKind
from conf.errors import UserError
from conf.training import OptimizerConfig

# What is kept of a parameter besides the count of steps. In 8 bits every 256 numbers have a largest
# one, `absmax`; small parameters stay in float32 and have none.
FLOAT_STATE = ("exp_avg", "exp_avg_sq")
BYTE_STATE = ("state1", "state2", "absmax1", "absmax2")


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer of a model.

    Raises:
        UserError: It needs a library that is not installed.
    """
    settings: dict[str, Any] = {
        "lr": config.lr,
        "betas": (config.betas[0], config.betas[1]),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.kind is OptimizerKind.adamw:
        return torch.optim.AdamW(parameters, fused=True, **settings)
    # On a CPU it tells of kernels for inference, which nobody has asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            "optimizer.kind=adamw_8bit",
            f"needs bitsandbytes ({error})",
            "pip install 'latent-foundry[8bit]', or choose optimizer.kind=adamw",
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, **settings)
    return optimizer


def state_tensors(optimizer: torch.optim.Optimizer, weights: Tensor) -> dict[str, Tensor]:
    """The optimizer's state of some weights by its names, as tensors that it goes on with."""
    state = optimizer.state[weights]
    return {name: state[name] for name in (*FLOAT_STATE, *BYTE_STATE) if name in state}


def start_state(optimizer: torch.optim.Optimizer, weights: Iterable[Tensor], updates: int) -> None:
    """Give an optimizer that has made no step empty state, to be filled with what was kept.

    Args:
        optimizer: A fresh one, with one group.
        weights: What it updates, in the group's order.
        updates: Steps that the state has seen.
    """
    for number, one in enumerate(weights):
        if isinstance(optimizer, torch.optim.AdamW):
            step = torch.tensor(float(updates), device=one.device)
            empty = {name: torch.zeros_like(one) for name in FLOAT_STATE}
            optimizer.state[one] = {"step": step, **empty}
        else:
            optimizer.init_state(optimizer.param_groups[0], one, 0, number)  # type: ignore[attr-defined]
            optimizer.state[one]["step"] = updates
