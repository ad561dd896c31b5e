"""The settings of an autoencoder of diffusers, as its config.json has them.

Owns what of them we have modules for; refuses what we have none for, by name. What is left out
there is what diffusers takes it to be.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from conf.encoders import KLAutoencoderConfig
from training.models.autoencoder_sizes import MOST, Scale, Sizes, multiples
from training.models.tiny import TinySizes

UNSAID_SCALE = 0.18215  # what diffusers takes where a config.json of four channels has none

MOST_LEVELS = 16


def sizes_from_config(config: Mapping[str, Any]) -> Sizes:
    """The sizes in the content of diffusers' config.json.

    Raises:
        ValueError: It asks for what we have no modules for; says which setting does.
    """
    kinds = {"AutoencoderKL": _kl_sizes, "AutoencoderTiny": _tiny_sizes}
    kind = config.get("_class_name")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"_class_name={kind!r} is not known ({' and '.join(kinds)} are)")
    for name in ("in_channels", "out_channels"):
        _expect(config, name, 3)
    return kinds[kind](config)


def _kl_sizes(config: Mapping[str, Any]) -> KLAutoencoderConfig:
    _expect(config, "act_fn", "silu")
    widths = _integers(config, "block_out_channels", (64,))
    for name, block in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        if name in config:
            _expect(config, name, [block] * len(widths))
    quant_convs = _switch(config, "use_quant_conv")
    _expect(config, "use_post_quant_conv", quant_convs, True)
    groups = _integer(config, "norm_num_groups", 32)
    if wrong := [width for width in widths if width % groups]:
        raise ValueError(f"norm_num_groups={groups} does not divide {wrong[0]} channels")
    return KLAutoencoderConfig(
        latent_channels=_integer(config, "latent_channels", 4),
        channels=widths[0],
        channel_mult=multiples(widths, widths[0]),
        res_blocks=_integer(config, "layers_per_block", 1),
        attention=_switch(config, "mid_block_add_attention"),
        norm_groups=groups,
        quant_convs=quant_convs,
    )


def _tiny_sizes(config: Mapping[str, Any]) -> TinySizes:
    for name, value in (
        ("act_fn", "relu"),
        ("upsample_fn", "nearest"),
        ("upsampling_scaling_factor", 2),
    ):
        _expect(config, name, value)
    widths = [
        width
        for part in ("encoder", "decoder")
        for width in _integers(config, f"{part}_block_out_channels", (64,) * 4)
    ]
    if len(set(widths)) > 1:
        raise ValueError(f"levels of different widths {widths}")
    encoder, decoder = (
        tuple(_integers(config, name, default, low=0))
        for name, default in (
            ("num_encoder_blocks", (1, 3, 3, 3)),
            ("num_decoder_blocks", (3, 3, 3, 1)),
        )
    )
    return TinySizes(_integer(config, "latent_channels", 4), widths[0], encoder, decoder)


def published_scale(config: Mapping[str, Any]) -> Scale:
    """scaling_factor and shift_factor in diffusers' config.json; None where they are not all.

    Raises:
        ValueError: They are no numbers.
    """
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        return None, None  # a number for each channel besides, which these two do not tell
    kl = config.get("_class_name") == "AutoencoderKL"
    # The first releases of Stable Diffusion left out what is 0.18215.
    known = UNSAID_SCALE if kl and config.get("latent_channels", 4) == 4 else None
    scale = config.get("scaling_factor", known if kl else 1.0)
    shift = config.get("shift_factor")
    for name, value in (("scaling_factor", scale), ("shift_factor", shift)):
        number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
        if value is not None and not number:
            raise ValueError(f"{name}={value!r} is no number")
    if scale is None:
        return None, None
    if scale <= 0:
        raise ValueError(f"scaling_factor={scale!r} is not above 0")
    return float(scale), float(shift or 0.0)


def _expect(config: Mapping[str, Any], name: str, value: Any, default: Any = None) -> None:
    given = config.get(name, value if default is None else default)
    if given != value:
        raise ValueError(f"{name}={given!r}, only {value!r} is known here")


def _switch(config: Mapping[str, Any], name: str) -> bool:
    given = config.get(name, True)
    if not isinstance(given, bool):
        raise ValueError(f"{name}={given!r} is neither true nor false")
    return given


def _integer(config: Mapping[str, Any], name: str, default: int) -> int:
    (given,) = _integers({name: [config.get(name, default)]}, name, ())
    return given


def _integers(
    config: Mapping[str, Any], name: str, default: tuple[int, ...], low: int = 1
) -> list[int]:
    given = config.get(name, list(default))
    if (
        not isinstance(given, list)
        or not 0 < len(given) <= MOST_LEVELS
        or not all(type(number) is int and low <= number <= MOST for number in given)
    ):
        raise ValueError(f"{name}={given!r:.100} is not from {low} to {MOST}")
    return given
