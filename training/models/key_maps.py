"""What others call the weights of an autoencoder that we have modules for.

Owns the names in each spelling; refuses to read or check weights. The maps go from our names to
theirs, so that what a file should hold is said in the file's own words.
"""

import re
from collections.abc import Iterable
from enum import Enum

Rules = tuple[tuple[str, str], ...]


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
