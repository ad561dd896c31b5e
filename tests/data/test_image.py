import io
import random
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from data import image as module
from data.image import (
    MAX_PIXELS,
    BadImage,
    covering,
    cut,
    decode_image,
    encode_png,
    fit,
    middle,
    read_size,
)
from tests.helpers.datasets import flip_bit, tiny_image

ORIENTATION = 0x0112


def _encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _plain(color, size=(8, 8), mode="RGB"):
    return Image.new(mode, size, color)


def _png_that_claims(width, height):
    """A PNG of a few bytes whose header says that it is larger."""
    content = bytearray(_encode(_plain("red")))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


# --- what is read


def test_png_reads_back_bit_for_bit():
    pixels = tiny_image(0, 13)
    assert np.array_equal(decode_image(encode_png(pixels)), pixels)
    assert encode_png(pixels) == encode_png(pixels.copy())


@pytest.mark.parametrize(("format", "options"), [("WEBP", {"lossless": True}), ("JPEG", {})])
def test_other_formats_are_read(format, options):
    image = decode_image(_encode(_plain((200, 100, 50)), format, **options))
    assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)
    assert np.abs(image.astype(int) - (200, 100, 50)).max() <= 2


def test_height_comes_before_width():
    assert decode_image(_encode(_plain("red", size=(3, 5)))).shape == (5, 3, 3)


def test_transparency_is_laid_on_white():
    image = _plain((255, 0, 0, 255), mode="RGBA")
    image.putpixel((0, 0), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 51))
    decoded = decode_image(_encode(image))
    assert decoded[0, :3].tolist() == [[255, 255, 255], [204, 204, 204], [255, 0, 0]]


def test_gray_with_transparency_is_laid_on_white():
    image = _plain((7, 255), mode="LA")
    image.putpixel((0, 0), (0, 0))
    assert decode_image(_encode(image))[0, :2].tolist() == [[255] * 3, [7] * 3]


def test_a_transparent_color_of_a_palette_is_white():
    image = Image.new("P", (4, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1, 0, 1])
    content = _encode(image, transparency=0)
    assert decode_image(content)[0, :2].tolist() == [[255, 255, 255], [200, 100, 50]]


def test_a_transparent_color_of_rgb_is_white():
    content = _encode(_plain((1, 2, 3)), transparency=(1, 2, 3))
    assert (decode_image(content) == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_gray_and_palettes_become_rgb(mode):
    assert decode_image(_encode(_plain("white", mode="RGB").convert(mode))).shape == (8, 8, 3)


def test_sixteen_bits_are_scaled_not_clipped():
    pixels = np.array([[0, 255, 256, 0x7FFF, 0xFFFF]], dtype=np.uint16)
    decoded = decode_image(_encode(Image.fromarray(pixels)))
    assert decoded[0].tolist() == [[value] * 3 for value in (0, 0, 1, 127, 255)]


def test_sixteen_bits_of_color_are_scaled():
    """Pillow cannot write them, so the file is put together here."""
    pixels = struct.pack(">B6H", 0, 0xFFFF, 0x8000, 255, 256, 0, 0x7FFF)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        content += struct.pack(">I", len(data)) + kind + data + crc
    assert decode_image(content)[0].tolist() == [[255, 128, 0], [1, 0, 127]]


def test_a_transparent_gray_of_sixteen_bits_is_white():
    pixels = np.array([[0x1234, 0x1200]], dtype=np.uint16)
    content = _encode(Image.fromarray(pixels), transparency=0x1234)
    assert decode_image(content)[0].tolist() == [[255] * 3, [0x12] * 3]


def test_the_first_picture_of_an_animation_is_taken():
    for format in ("PNG", "WEBP"):
        options = {"save_all": True, "append_images": [_plain("blue")], "lossless": True}
        assert decode_image(_encode(_plain("red"), format, **options))[0, 0].tolist() == [255, 0, 0]


def test_cmyk_becomes_rgb():
    image = decode_image(_encode(_plain((0, 255, 255, 0), mode="CMYK"), "JPEG"))
    assert np.abs(image.astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_camera_held_sideways_is_put_upright(format, orientation):
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16] = 255  # white at the top left, and wider than high
    steps = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    held = Image.fromarray(np.ascontiguousarray(steps[orientation]))
    content = _encode(held, format, exif=exif.tobytes())
    decoded = decode_image(content)
    assert decoded.shape == upright.shape
    assert read_size(content) == (16, 32)
    assert np.abs(decoded.astype(int) - upright).max() < 30


def test_a_size_is_read_without_the_pixels(monkeypatch):
    """And an orientation that a PNG has behind its pixels is found all the same."""
    contents = [_encode(_plain("red", (5, 3)), format) for format in ("PNG", "JPEG", "WEBP")]
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    png = _encode(_plain("red", (5, 3)), exif=exif.tobytes())
    at = png.index(b"eXIf") - 4
    chunk = png[at : at + 12 + int.from_bytes(png[at : at + 4], "big")]
    end = png.index(b"IEND") - 4
    assert at < png.index(b"IDAT")
    assert read_size(png[:at] + png[at + len(chunk) : end] + chunk + png[end:]) == (5, 3)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it decoded"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it decoded"))
    for content in contents:
        assert read_size(content) == (3, 5)


# --- what is refused


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(format):
    with pytest.raises(BadImage):
        decode_image(_encode(_plain("red", size=(16, 16)), format))


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(99)]
)
def test_what_is_no_image_is_refused(content):
    for read in (decode_image, read_size):
        with pytest.raises(BadImage):
            read(content)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_an_image_that_was_cut_is_refused(format):
    content = _encode(Image.fromarray(tiny_image(1, 64)), format)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(BadImage):
            decode_image(content[: int(share * len(content))])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(12_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_that_claims_to_be_huge_is_refused_at_once(size):
    assert size[0] * size[1] > MAX_PIXELS
    start = time.process_time()
    for read in (decode_image, read_size):
        with pytest.raises(BadImage, match="pixels"):
            read(_png_that_claims(*size))
    assert time.process_time() - start < 0.5


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_format_that_claims_to_be_huge_is_refused_at_once():
    jpeg = bytearray(_encode(_plain("red"), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    webp = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\xff\xff" * 2
    lossless = bytearray(_encode(_plain("red"), "WEBP", lossless=True))
    at = lossless.index(b"VP8L") + 9
    lossless[at : at + 4] = (int.from_bytes(lossless[at : at + 4], "little") | 2**28 - 1).to_bytes(
        4, "little"
    )
    for content in (jpeg, webp, lossless):
        start = time.process_time()
        with pytest.raises(BadImage):
            decode_image(bytes(content))
        assert time.process_time() - start < 0.5


def test_a_file_of_too_many_bytes_is_refused(monkeypatch):
    content = encode_png(tiny_image(0, 16))
    monkeypatch.setattr(module, "MAX_BYTES", len(content))
    assert decode_image(content).shape == (16, 16, 3)
    for read in (decode_image, read_size):
        with pytest.raises(BadImage, match="more than"):
            read(content + b"\0")


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_a_reason_is_the_same_in_every_run(content):
    """It comes into files whose bytes must not depend on where something lay in memory."""
    with pytest.raises(BadImage) as caught:
        decode_image(content)
    assert "0x" not in str(caught.value) and str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # it also says what it thinks of each
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_damage_is_read_or_refused_but_nothing_else(format):
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010E] = 6, "a description"
    content = _encode(Image.fromarray(tiny_image(2, 16)), format, exif=exif.tobytes())
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = content
        for _ in range(chance.choice([1, 3, 9])):
            damaged = flip_bit(damaged, chance.randrange(8 * min(len(content), 300)))
        try:
            image = decode_image(damaged)
            assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
            assert read_size(damaged) == image.shape[:2]
        except BadImage:
            refused += 1
    assert refused


# --- resizing and cutting

side = st.integers(1, 5000)


@given(side, side, side, side)
def test_a_resized_image_just_covers_and_keeps_its_aspect(height, width, tall, wide):
    covered = covering((height, width), (tall, wide))
    assert covered[0] >= tall and covered[1] >= wide
    assert covered[0] == tall or covered[1] == wide
    scale = max(tall / height, wide / width)
    assert abs(covered[0] - scale * height) <= 0.51 and abs(covered[1] - scale * width) <= 0.51
    assert covering((width, height), (wide, tall)) == covered[::-1]


@pytest.mark.parametrize("shape", [(40, 40), (40, 90), (90, 40), (20, 32), (16, 98)])
def test_the_middle_square_is_taken(shape):
    height, width = shape
    top, left = (height - min(shape)) // 2, (width - min(shape)) // 2
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[top : height - top, left : width - left] = 255
    square = fit(image, 16, 16)
    assert square.shape == (16, 16, 3)
    assert square[2:-2, 2:-2].min() > 240


@pytest.mark.parametrize("target", [(8, 24), (24, 8), (16, 16), (10, 30)])
@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (5, 5), (61, 60)])
def test_cutting_is_resizing_the_whole_and_cutting_that(shape, target):
    gradient = np.linspace(0, 255, shape[0] * shape[1]).reshape(shape)
    image = np.stack([gradient, gradient[::-1], gradient[:, ::-1]], -1).astype(np.uint8)
    tall, wide = covering(shape, target)
    whole = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.LANCZOS))
    for top, left in {(0, 0), middle((tall, wide), target), (tall - target[0], wide - target[1])}:
        expected = whole[top : top + target[0], left : left + target[1]].astype(int)
        apart = np.abs(cut(image, target, (top, left)) - expected)
        assert apart.shape == (*target, 3)
        assert np.median(apart) <= 1  # at the border the one sees what the other has cut off
        assert apart[3:-3, 3:-3].max() <= 3
    assert np.array_equal(fit(image, *target), cut(image, target, middle((tall, wide), target)))


def test_a_very_long_picture_is_never_resized_as_a_whole():
    """That would take 30 GB here."""
    assert fit(np.full((1, 100_000, 3), 7, dtype=np.uint8), 300, 300).shape == (300, 300, 3)


def test_a_square_of_the_right_size_is_left_alone():
    image = tiny_image(3, 16)
    assert np.array_equal(fit(image, 16, 16), image)


def test_a_smaller_image_is_made_larger():
    assert fit(tiny_image(4, 4), 16, 16).shape == (16, 16, 3)
