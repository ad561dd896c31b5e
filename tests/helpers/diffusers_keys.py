"""Weights for tests that compare with diffusers: random ones, and theirs under our names."""

import re
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)
Value = TypeVar("Value")

SHARED = (
    (r"\bconv_norm_out\b", "norm_out"),
    (r"\bconv_shortcut\b", "skip"),
    (r"\bto_out\.0\b", "to_out"),
)
UNET = (
    (r"^time_embedding\.linear_1\b", "time_mlp.0"),
    (r"^time_embedding\.linear_2\b", "time_mlp.2"),
    (r"^(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\b", r"\1.\2.resample"),
    (r"^(down|up)_blocks\.(\d+)\.resnets\.(\d+)\b", r"\1.\2.stages.\3.res"),
    (r"^(down|up)_blocks\.(\d+)\.attentions\.(\d+)\b", r"\1.\2.stages.\3.transformer"),
    (r"^mid_block\.resnets\.(\d)\b", r"middle.\1.res"),
    (r"^mid_block\.attentions\.0\b", "middle.0.transformer"),
    (r"\btime_emb_proj\b", "shift"),
    (r"\btransformer_blocks\b", "blocks"),
    (r"\battn1\b", "self_attention"),
    (r"\battn2\b", "cross_attention"),
    (r"\bff\.net\.0\.proj\b", "feed_forward.proj_in"),
    (r"\bff\.net\.2\b", "feed_forward.proj_out"),
)
AUTOENCODER = (
    (r"\b(?:down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\b", r"levels.\1.resample"),
    (r"\b(?:down|up)_blocks\.(\d+)\.resnets\.(\d+)\b", r"levels.\1.\2"),
    (r"\bmid_block\.resnets\.0\b", "middle.res1"),
    (r"\bmid_block\.resnets\.1\b", "middle.res2"),
    (r"\bmid_block\.attentions\.0\.group_norm\b", "middle.attention.norm"),
    (r"\bmid_block\.attentions\.0\b", "middle.attention.attention"),
)


def randomize(module: Module) -> Module:
    """Draws weights that keep activations of order one, also where training starts at zero."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="linear")
        else:
            nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return module


def unet_names(theirs: dict[str, Value]) -> dict[str, Value]:
    """What belongs to the parts of a `UNet2DConditionModel`, by their names in our `UNet`."""
    return {_rename(name, UNET): value for name, value in theirs.items()}


def autoencoder_names(theirs: dict[str, Value]) -> dict[str, Value]:
    """What belongs to the parts of an `AutoencoderKL`, by their names in our `KLAutoencoder`."""
    return {_rename(name, AUTOENCODER): value for name, value in theirs.items()}


def norm_eps(network: nn.Module) -> dict[str, float]:
    """The eps of every normalisation, which outputs of order one would hardly show."""
    norms = (nn.GroupNorm, nn.LayerNorm)
    return {name: part.eps for name, part in network.named_modules() if isinstance(part, norms)}


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in (*rules, *SHARED):
        name = re.sub(pattern, replacement, name)
    return name
