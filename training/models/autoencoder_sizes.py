"""The sizes of an autoencoder that others have trained, as the shapes of its weights tell them.

Owns what can be known of weights that come without settings; refuses shapes that we have no modules
for.
"""

import re
from collections.abc import Iterable, Mapping

from conf.encoders import KLAutoencoderConfig
from training.models.key_maps import Spelling
from training.models.tiny import TinySizes

Shapes = Mapping[str, tuple[int, ...]]
Sizes = KLAutoencoderConfig | TinySizes
Scale = tuple[float | None, float | None]  # scale and shift: final latents are (z - shift) * scale

ORIGINAL_GROUPS = 32  # of every GroupNorm of CompVis' and Stability's; no shape shows it
MOST = 1 << 16  # channels, blocks or groups; beyond, something is wrong
# Names that only whole checkpoints of one family have, and its scale and shift. The weights of an
# autoencoder alone do not tell: SDXL's have the names and shapes of Stable Diffusion 1's.
FAMILIES: dict[str, Scale] = {
    "cond_stage_model.": (0.18215, 0.0),  # Stable Diffusion 1 and 2
    "conditioner.embedders.": (0.13025, 0.0),  # SDXL
    "model.diffusion_model.joint_blocks.": (1.5305, 0.0609),  # Stable Diffusion 3
}


def known_scale(sizes: Sizes, names: Iterable[str]) -> Scale:
    """What was published for weights that come without config.json; None where it is not known.

    Args:
        sizes: Sizes of the autoencoder.
        names: All names in the file, those of other models too.
    """
    if isinstance(sizes, TinySizes):
        return 1.0, 0.0
    for name in names:
        for start, scale in FAMILIES.items():
            if name.startswith(start):
                return scale
    return None, None


def sizes_from_shapes(shapes: Shapes, spelling: Spelling) -> Sizes:
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
    if channels % ORIGINAL_GROUPS:
        raise ValueError(f"{channels} channels are no multiple of {ORIGINAL_GROUPS}, as norms need")
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
    if len(shape) != 4 or not all(0 < side <= MOST for side in shape):
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
