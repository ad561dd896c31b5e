"""What others call the weights of an autoencoder that we have modules for.

Owns the names in each spelling and the sizes that shapes give away; refuses to read or check weights.
The maps go from our names to theirs, so that what a file should hold is said in the file's own words.
"""

import re
from collections.abc import Iterable, Mapping
from enum import Enum

from conf.encoders import KLAutoencoderConfig
from training.models.tiny import TinySizes

Shapes = Mapping[str, tuple[int, ...]]
Rules = tuple[tuple[str, str], ...]

ORIGINAL_GROUPS = 32  # of every GroupNorm of CompVis' and Stability's; no shape shows it


class Spelling(Enum):
    """Whose names they are."""

    compvis = "CompVis"
    diffusers = "diffusers"
    diffusers_old = "diffusers before 0.17"
    tiny = "diffusers' AutoencoderTiny"


DIFFUSERS: Rules = (
    (r"^encoder\.levels\.(\d+)\.resample", r"encoder.down_blocks.\1.downsamplers.0"),
    (r"^decoder\.levels\.(\d+)\.resample", r"decoder.up_blocks.\1.upsamplers.0"),
    (r"^encoder\.levels\.(\d+)", r"encoder.down_blocks.\1.resnets"),
    (r"^decoder\.levels\.(\d+)", r"decoder.up_blocks.\1.resnets"),
    (r"\.middle\.res1", ".mid_block.resnets.0"),
    (r"\.middle\.res2", ".mid_block.resnets.1"),
    (r"\.middle\.attention\.norm", ".mid_block.attentions.0.group_norm"),
    (r"\.middle\.attention\.attention", ".mid_block.attentions.0"),
    (r"\.to_out\.", ".to_out.0."),
    (r"\.skip\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)
DIFFUSERS_OLD: Rules = (
    *DIFFUSERS,
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
    (r"\.to_out\.0\.", ".proj_attn."),
)
COMPVIS: Rules = (
    (r"^encoder\.levels\.(\d+)\.resample", r"encoder.down.\1.downsample"),
    (r"^decoder\.levels\.(\d+)\.resample", r"decoder.up.\1.upsample"),
    (r"^encoder\.levels\.(\d+)", r"encoder.down.\1.block"),
    (r"^decoder\.levels\.(\d+)", r"decoder.up.\1.block"),
    (r"\.middle\.res([12])", r".mid.block_\1"),
    (r"\.middle\.attention\.norm", ".mid.attn_1.norm"),
    (r"\.middle\.attention\.attention\.to_([qkv])", r".mid.attn_1.\1"),
    (r"\.middle\.attention\.attention\.to_out", ".mid.attn_1.proj_out"),
    (r"\.skip\.", ".nin_shortcut."),
)
TINY: Rules = ((r"^(encoder|decoder)\.", r"\1.layers."),)
RULES = {
    Spelling.compvis: COMPVIS,
    Spelling.diffusers: DIFFUSERS,
    Spelling.diffusers_old: DIFFUSERS_OLD,
    Spelling.tiny: TINY,
}


def spelling_of(keys: Iterable[str]) -> Spelling | None:
    """Whose names `keys` are; None if they are no autoencoder's."""
    keys = list(keys)
    if any(re.match(r"(encoder\.down|decoder\.up)\.\d", key) for key in keys):
        return Spelling.compvis
    if any(re.match(r"(encoder\.down|decoder\.up)_blocks\.\d", key) for key in keys):
        old = any(".attentions.0.query." in key for key in keys)
        return Spelling.diffusers_old if old else Spelling.diffusers
    if any(re.match(r"(encoder|decoder)\.layers\.\d", key) for key in keys):
        return Spelling.tiny
    return None


def their_names(ours: Iterable[str], spelling: Spelling, levels: int) -> dict[str, str]:
    """Our names by those of `spelling`, in our order.

    Args:
        ours: Names in the `state_dict` of a KLAutoencoder or TinyAutoencoder.
        spelling: Whose names are wanted.
        levels: Levels of the autoencoder: CompVis counts those of the decoder from the images.
    """
    theirs = {}
    for name in ours:
        key = name
        if spelling is Spelling.compvis and (level := re.match(r"decoder\.levels\.(\d+)", name)):
            key = f"decoder.levels.{levels - 1 - int(level[1])}{name[level.end() :]}"
        for pattern, replacement in RULES[spelling]:
            key = re.sub(pattern, replacement, key)
        theirs[key] = name
    return theirs


def sizes_from_shapes(shapes: Shapes, spelling: Spelling) -> KLAutoencoderConfig | TinySizes:
    """The sizes of an autoencoder whose weights have these shapes.

    Args:
        shapes: Shape of every weight, under the names of `spelling`.
        spelling: Whose names they are.

    Raises:
        KeyError: A weight without which the sizes are not to be known; its name alone.
        ValueError: The shapes are those of no autoencoder of ours; says why.
    """
    if spelling is Spelling.tiny:
        return TinySizes(
            latent_channels=_channels_in(shapes, "decoder.layers.0.weight"),
            channels=_channels_out(shapes, "encoder.layers.0.weight"),
            encoder_blocks=_tiny_blocks(shapes, "encoder"),
            decoder_blocks=_tiny_blocks(shapes, "decoder"),
        )
    down, block, middle = (
        ("down", "block", "mid.attn_1")
        if spelling is Spelling.compvis
        else ("down_blocks", "resnets", "mid_block.attentions.0")
    )
    channels = _channels_out(shapes, "encoder.conv_in.weight")
    levels = _count(shapes, rf"encoder\.{down}\.(\d+)\.")
    widths = [
        _channels_out(shapes, f"encoder.{down}.{level}.{block}.0.conv1.weight")
        for level in range(levels)
    ]
    return KLAutoencoderConfig(
        latent_channels=_channels_in(shapes, "decoder.conv_in.weight"),
        channels=channels,
        channel_mult=multiples(widths, channels),
        res_blocks=_count(shapes, rf"encoder\.{down}\.0\.{block}\.(\d+)\."),
        attention=any(key.startswith(f"encoder.{middle}.") for key in shapes),
        norm_groups=ORIGINAL_GROUPS,
        quant_convs="quant_conv.weight" in shapes,
    )


def multiples(widths: list[int], channels: int) -> list[int]:
    """Widths of levels in multiples of `channels`.

    Raises:
        ValueError: They are none.
    """
    if channels < 1 or not widths or any(width < 1 or width % channels for width in widths):
        raise ValueError(f"levels of {widths} channels are no multiples of {channels}")
    return [width // channels for width in widths]


def _count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers stand at the group of `pattern`, at the start of a name."""
    return len({found[1] for key in shapes if (found := re.match(pattern, key))})


def _channels_out(shapes: Shapes, key: str) -> int:
    return _convolution(shapes, key)[0]


def _channels_in(shapes: Shapes, key: str) -> int:
    return _convolution(shapes, key)[1]


def _convolution(shapes: Shapes, key: str) -> tuple[int, ...]:
    shape = shapes[key]
    if len(shape) != 4 or not all(0 < side <= 1 << 16 for side in shape):
        raise ValueError(f"{key} has the shape {shape}, which is no convolution's")
    return shape


def _tiny_blocks(shapes: Shapes, part: str) -> tuple[int, ...]:
    """Residual blocks between each two convolutions of a tiny encoder or decoder."""
    prefix = f"{part}.layers."
    is_block = {
        int(index): rest.startswith("conv.")
        for index, _, rest in (
            key.removeprefix(prefix).partition(".") for key in shapes if key.startswith(prefix)
        )
        if re.fullmatch(r"\d{1,9}", index)
    }
    blocks: list[int] = []
    for index in sorted(is_block):
        if is_block[index] and blocks:
            blocks[-1] += 1
        elif not is_block[index]:
            blocks.append(0)
    return tuple(blocks[:-1])  # nothing follows the last convolution
