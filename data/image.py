"""Images: bytes to RGB arrays and back, within caps on size."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 100_000_000
MAX_BYTES = 128 * 2**20


class BadImage(Exception):
    """Bytes that are not an image that we read, with the reason."""


def decode_image(content: bytes) -> NDArray[np.uint8]:
    """Decode to RGB, upright, transparency laid on white.

    Args:
        content: A PNG, JPEG or WebP file.

    Returns:
        uint8, (H, W, 3).

    Raises:
        BadImage: Another format, damaged, or more than `MAX_BYTES` or `MAX_PIXELS`. The reason is
            the same in every run.
    """
    if len(content) > MAX_BYTES:
        raise BadImage(f"more than {MAX_BYTES:,} bytes")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"{image.width}x{image.height} pixels; the most is {MAX_PIXELS:,}")
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits: Pillow would clip, not scale
                upright = _eight_bits(upright)
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return np.asarray(upright.convert("RGB"))
    except BadImage:
        raise
    except UnidentifiedImageError as error:  # its own words hold an address in memory
        raise BadImage("is no PNG, JPEG or WebP, or its header is damaged") from error
    except Exception as error:  # Pillow raises whatever a damaged file leads it to
        raise BadImage(str(error)) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits as gray of 8, its transparent value white."""
    pixels = np.asarray(image)
    gray = (pixels >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[pixels == transparent] = 255
    return Image.fromarray(gray)


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
