"""Images: bytes to RGB arrays and back, within caps on size."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 50_000_000
MAX_PIXELS_HELD = 24_500_000  # of a decoder that holds the picture several times
MAX_BYTES = 64 * 2**20
# What decoding and cutting may take: the file twice, and so many bytes a pixel.
MAX_MEMORY = 400_000_000
BYTES_PER_PIXEL, BYTES_PER_PIXEL_HELD = 7, 16
# Each scan of a progressive JPEG, however short, is a pass over all pixels; ten are usual.
MAX_SCANS = 100
SCAN = b"\xff\xda"
BAND = 256  # rows that are converted at once
UNKNOWN = "is no PNG, JPEG or WebP, or its header is damaged"
PNG_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF's orientations that swap height and width


# Pillow's own limit is higher than ours, and first of all a warning on the screen.
Image.MAX_IMAGE_PIXELS = None


class BadImage(Exception):
    """Bytes that are not an image that we read, with the reason."""


def decode_image(content: bytes) -> NDArray[np.uint8]:
    """Decode to RGB, upright, transparency laid on white.

    Args:
        content: A PNG, JPEG or WebP file.

    Returns:
        uint8, (H, W, 3).

    Raises:
        BadImage: Another format, damaged, or more than `MAX_BYTES` or `MAX_PIXELS`; of WebP and
            progressive JPEG, more than `MAX_PIXELS_HELD`. The reason is the same in every run.
    """
    if len(content) > MAX_BYTES:
        raise BadImage(f"more than {MAX_BYTES:,} bytes")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _require_small(image, len(content))
            _require_few_scans(image, content)
            image.load()
            upright = np.empty((*_upright_size(image), 3), dtype=np.uint8)
            held = _as_held(upright, _orientation(image))
            for top in range(0, image.height, BAND):
                bottom = min(top + BAND, image.height)
                held[top:bottom] = _rgb(image.crop((0, top, image.width, bottom)))
            return upright
    except BadImage:
        raise
    except UnidentifiedImageError as error:  # its own words hold an address in memory
        raise BadImage(UNKNOWN) from error
    except Exception as error:  # Pillow raises whatever a damaged file leads it to
        raise BadImage(str(error)) from error


def _require_small(image: Image.Image, num_bytes: int) -> None:
    held = image.format == "WEBP" or "progressive" in image.info
    most = MAX_PIXELS_HELD if held else MAX_PIXELS
    pixels = image.width * image.height
    if pixels > most:
        raise BadImage(f"{image.width}x{image.height} pixels; the most is {most:,}")
    memory = 2 * num_bytes + pixels * (BYTES_PER_PIXEL_HELD if held else BYTES_PER_PIXEL)
    if memory > MAX_MEMORY:
        size = f"{image.width}x{image.height} pixels in {num_bytes:,} bytes"
        raise BadImage(f"{size} take {memory:,} to decode; the most is {MAX_MEMORY:,}")


def _require_few_scans(image: Image.Image, content: bytes) -> None:
    # The mark of a scan may also be part of a profile, or of a film behind the picture.
    if "progressive" in image.info and content.count(SCAN) > MAX_SCANS + len(content) // 2**15:
        raise BadImage(f"more than {MAX_SCANS} scans")


def _orientation(image: Image.Image) -> int:
    """How the camera was held, by EXIF's numbers; 1 is upright."""
    found = image.getexif().get(ExifTags.Base.Orientation)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an image once it is upright."""
    if _orientation(image) in ON_ITS_SIDE:
        return image.width, image.height
    return image.height, image.width


def _as_held(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """A view of an upright image as the camera held it."""
    match orientation:
        case 2:
            return upright[:, ::-1]
        case 3:
            return upright[::-1, ::-1]
        case 4:
            return upright[::-1]
        case 5:
            return upright.transpose(1, 0, 2)
        case 6:
            return np.rot90(upright, 1)
        case 7:
            return upright[::-1, ::-1].transpose(1, 0, 2)
        case 8:
            return np.rot90(upright, -1)
    return upright


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """A piece of an image as RGB, transparency laid on white."""
    if image.mode.startswith("I"):  # 16 bits: Pillow would clip, not scale
        image = _eight_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))


def read_size(content: bytes) -> tuple[int, int]:
    """Height and width that `decode_image` would give, from the header alone.

    Raises:
        BadImage: As there, as far as the header shows it.
    """
    if len(content) > MAX_BYTES:
        raise BadImage(f"more than {MAX_BYTES:,} bytes")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _require_small(image, len(content))
            # Pillow looks for a PNG's orientation behind the pixels, and decodes them to get there.
            may_be_turned = image.format != "PNG" or any(m in content for m in PNG_ORIENTATION)
            return _upright_size(image) if may_be_turned else (image.height, image.width)
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(UNKNOWN) from error
    except Exception as error:
        raise BadImage(str(error)) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits as gray of 8, its transparent value white."""
    pixels = np.asarray(image)
    gray = (pixels >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[pixels == transparent] = 255
    return Image.fromarray(gray)


def covering(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The height and width that an image is resized to so that it just covers the target."""
    (height, width), (tall, wide) = size, target
    if height * wide <= width * tall:  # the height is what is short
        return tall, max(wide, (2 * width * tall + height) // (2 * height))
    return max(tall, (2 * height * wide + width) // (2 * width)), wide


def cut(
    image: NDArray[np.uint8],
    target: tuple[int, int],
    corner: tuple[int, int],
    resized: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Resize, and cut out the target.

    Args:
        image: uint8, (H, W, 3).
        target: Height and width of what comes out.
        corner: Its top and left in the resized image, which is never made as a whole: of a very
            long picture it would not fit into memory.
        resized: Height and width of the resized image; None just covers the target.

    Returns:
        uint8, (*target, 3).
    """
    height, width = image.shape[:2]
    if (height, width) == target and resized in (None, target):
        return image
    (tall, wide), (top, left) = resized or covering((height, width), target), corner
    box = (
        left * width / wide,
        top * height / tall,
        (left + target[1]) * width / wide,
        (top + target[0]) * height / tall,
    )
    made = Image.fromarray(image).resize(target[::-1], Image.Resampling.LANCZOS, box)
    return np.asarray(made)


def fit(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize so that (height, width) is just covered, and cut out the middle.

    Args:
        image: uint8, (H, W, 3).
        height: In pixels.
        width: In pixels.

    Returns:
        uint8, (height, width, 3).
    """
    target = (height, width)
    return cut(image, target, middle(covering(image.shape[:2], target), target))


def middle(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Top and left of the target in the middle of an image."""
    return (size[0] - target[0]) // 2, (size[1] - target[1]) // 2


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode as PNG; the bytes depend on the pixels alone."""
    return _encode(image, "PNG", optimize=False)


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """Encode as JPEG, 1 to 100, with colours at full resolution.

    Pillow would halve that of the colours in both directions, and an autoencoder that is trained on
    such images learns to blur colours at edges.
    """
    return _encode(image, "JPEG", quality=quality, subsampling="4:4:4", optimize=True)


def encode_webp(image: NDArray[np.uint8], quality: int) -> bytes:
    """Encode as WebP, 1 to 99, always with colours at half resolution; 100 is without loss."""
    if quality == 100:
        return _encode(image, "WEBP", lossless=True, method=4)
    return _encode(image, "WEBP", quality=quality, method=4)


def _encode(image: NDArray[np.uint8], encoder: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, encoder, **options)
    return buffer.getvalue()
