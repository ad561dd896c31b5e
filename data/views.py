"""What is encoded of an image: its middle, random crops, and all of these flipped."""

import numpy as np
from numpy.typing import NDArray

from conf.encoding import EncodingConfig
from data.image import covering, cut, fit
from data.reshard import random_corner

FLIPPED = " flipped"


def view_names(config: EncodingConfig) -> tuple[str, ...]:
    """The views of an image in words, in the order in which they are stored."""
    names = ["center", *(f"crop {number}" for number in range(config.crops))]
    if config.flip:
        names = [name + end for name in names for end in ("", FLIPPED)]
    return tuple(names)


def make_view(
    image: NDArray[np.uint8], size: tuple[int, int], config: EncodingConfig, number: int, key: str
) -> NDArray[np.uint8]:
    """One view of an image.

    Args:
        image: uint8, (H, W, 3).
        size: Height and width of the view.
        config: Which views there are.
        number: Of the view.
        key: Of the sample, which the crops' places depend on.

    Returns:
        uint8, (*size, 3).
    """
    flips = 2 if config.flip else 1
    crop, flipped = number // flips - 1, number % flips
    if crop < 0:
        view = fit(image, *size)
    else:
        height, width = (round(side * config.crop_zoom) for side in size)
        resized = covering(image.shape[:2], (height, width))
        corner = random_corner(resized, size, config.crop_seed + crop, key)
        view = cut(image, size, corner, resized)
    return view[:, ::-1] if flipped else view
