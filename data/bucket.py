"""Aspect-ratio buckets: the image sizes of a dataset, and which of them an image is brought to.

Batches hold images of one size. With squares alone, most of a wide picture is cut away; buckets of
about the same area and several aspect ratios keep it.

Source: NovelAI, Improvements on Stable Diffusion, 2022; Podell et al. 2023 (SDXL), appendix I.
"""

from collections.abc import Sequence


def make_buckets(size: int, step: int, max_aspect: float) -> tuple[tuple[int, int], ...]:
    """The sizes whose sides are multiples of `step` and whose area comes near to that of a square.

    To every side belongs the longest other side that keeps the area within `size` * `size`.

    Args:
        size: Side of the square in pixels; a multiple of `step` where `max_aspect` is above 1.
        step: What every side is a multiple of, in pixels.
        max_aspect: The most that the longer side may be, in multiples of the shorter.

    Returns:
        (height, width), the square first, then by aspect, the wider of two before the higher.
    """
    found = {(size, size)}
    if max_aspect == 1:
        return tuple(found)
    for side in range(step, size * size // step + 1, step):
        other = size * size // (side * step) * step
        if max(side, other) <= max_aspect * min(side, other):
            found |= {(side, other), (other, side)}
    return tuple(sorted(found, key=lambda one: (max(one) / min(one), -one[0] * one[1], one)))


def bucket_of(height: int, width: int, buckets: Sequence[tuple[int, int]]) -> int:
    """Number of the bucket whose aspect ratio is nearest, by the ratio of the two; the first wins.

    Args:
        height: Of the image in pixels.
        width: Of the image in pixels.
        buckets: Heights and widths in pixels, at least one.
    """

    def apart(number: int) -> float:
        one, other = height * buckets[number][1], width * buckets[number][0]
        return max(one, other) / min(one, other)

    return min(range(len(buckets)), key=apart)
