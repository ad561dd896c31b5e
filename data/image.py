"""Images: bytes to RGB arrays and back, within caps on size."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 100_000_000


class BadImage(Exception):
    """Bytes that are not an image that we read, with the reason."""


def decode_image(content: bytes) -> NDArray[np.uint8]:
    """Decode to RGB, upright, transparency laid on white.

    Args:
        content: A PNG, JPEG or WebP file.

    Returns:
        uint8, (H, W, 3).

    Raises:
        BadImage: Another format, damaged, or more than `MAX_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"{image.width}x{image.height} pixels; the most is {MAX_PIXELS:,}")
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits: Pillow would clip, not scale
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return np.asarray(upright.convert("RGB"))
    except BadImage:
        raise
    except Exception as error:  # Pillow raises whatever a damaged file leads it to
        raise BadImage(str(error)) from error


def fit_square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize so that the smaller side is `size` and cut the middle square.

    Args:
        image: uint8, (H, W, 3).
        size: Side in pixels.

    Returns:
        uint8, (size, size, 3).
    """
    if image.shape[:2] == (size, size):
        return image
    fitted = ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(fitted)


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode as PNG; the bytes depend on the pixels alone."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=False)
    return buffer.getvalue()
