"""Autoencoders as others publish them: diffusers' classes, random weights, in every spelling."""

import re

from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers.diffusers_keys import randomize

# What tells the published ones apart, beside their widths.
VARIANTS = {
    "sd1": {},
    "sd2": {"layers_per_block": 2, "sample_size": 768},
    "sdxl": {"scaling_factor": 0.13025, "force_upcast": True},
    "sd3": {
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
    },
    "flux": {
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    },
    "no attention": {"mid_block_add_attention": False},
    "other groups": {"norm_num_groups": 8, "block_out_channels": [16, 48, 32]},
}
OLD_NAMES = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
COMPVIS_NAMES = (
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_", "mid.attn_1."),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
)


def kl(**changes) -> AutoencoderKL:
    """A small AutoencoderKL."""
    widths = changes.pop("block_out_channels", [32, 64, 64])
    sizes = {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "norm_num_groups": 32,
    }
    return randomize(AutoencoderKL(**(sizes | changes))).eval()


def tiny(latent_channels: int = 4) -> AutoencoderTiny:
    """A small AutoencoderTiny."""
    sizes = {
        "encoder_block_out_channels": (8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8),
        "num_encoder_blocks": (1, 2, 1),
        "num_decoder_blocks": (2, 1, 1),
    }
    return randomize(AutoencoderTiny(latent_channels=latent_channels, **sizes)).eval()


def weights_of(model) -> dict[str, Tensor]:
    """Its weights, by diffusers' names."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def old_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As diffusers named them before it had one class for all attention."""
    return {_replace(name, OLD_NAMES): tensor for name, tensor in weights.items()}


def compvis(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As CompVis and Stability name them, with attention by convolutions of one pixel."""
    levels = len({name.split(".")[2] for name in weights if name.startswith("encoder.down_blocks")})
    theirs = {}
    for name, tensor in weights.items():
        for level in range(levels):
            up = f"decoder.up_blocks.{level}."
            if name.startswith(up):
                inner = name.removeprefix(up).replace("resnets", "block")
                inner = inner.replace("upsamplers.0", "upsample")
                name = f"decoder.up.{levels - 1 - level}.{inner}"
        name = _replace(name, COMPVIS_NAMES)
        linear = ".attn_1." in name and tensor.ndim == 2
        theirs[name] = tensor[:, :, None, None] if linear else tensor
    return theirs


def in_checkpoint(weights: dict[str, Tensor], **others: Tensor) -> dict[str, Tensor]:
    """Within a whole checkpoint."""
    return {f"first_stage_model.{name}": tensor for name, tensor in weights.items()} | others


def save(weights: dict[str, Tensor], path) -> None:
    """Writes a safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)


def _replace(name: str, rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
