"""Bad images, and good ones at the border of what is read."""

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from data.image import BYTES_PER_PIXEL, MAX_BYTES, MAX_MEMORY, MAX_PIXELS, MAX_PIXELS_HELD
from tests.helpers.tars import PNG
from tests.helpers.zoo.animal import PICKLE

RED = Image.new("RGB", (64, 64), "red")


def encode(image: Image.Image, format: str, **options) -> bytes:
    """An image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, bits: int = 1) -> bytes:
    """A gray PNG of the given chunks."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def with_chunk(added: bytes) -> bytes:
    """A good PNG with one more chunk behind its header."""
    return PNG[3][:33] + added + PNG[3][33:]


def deflated(size: int) -> bytes:
    """Zeros, a thousandth as long."""
    return zlib.compress(bytes(size), 9)


def claims(content: bytes, at: int, size: bytes) -> bytes:
    """An image whose header says another size."""
    return content[:at] + size + content[at + len(size) :]


def jpeg_that_claims() -> bytes:
    content = encode(RED, "JPEG")
    return claims(content, content.index(b"\xff\xc0") + 5, struct.pack(">HH", 65_500, 65_500))


def many_scans() -> bytes:
    """Each scan of a progressive JPEG is a pass over all pixels, however short it is."""
    content = encode(Image.new("L", (4096, 4096)), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 20_000 + content[-2:]


def animated(format: str, frames: int) -> bytes:
    """An animation of small frames of different colours; the first is red."""
    more = [Image.new("RGB", (16, 16), (0, i % 256, i // 256)) for i in range(frames)]
    first = Image.new("RGB", (16, 16), "red")
    return encode(first, format, save_all=True, append_images=more, lossless=True)


def turned(mode: str, side: int, format: str, **options) -> bytes:
    """A large image of one colour, held sideways."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(Image.new(mode, (side, side)), format, exif=exif.tobytes(), **options)


def full(content: bytes, size: int) -> bytes:
    """A PNG of so many bytes, nearly all of them in a chunk of nobody's."""
    return content[:33] + chunk(b"ruBB", bytes(size - 12 - len(content))) + content[33:]


def fullest() -> bytes:
    """A PNG that takes all the memory that one may take."""
    side = most(MAX_PIXELS)
    room = (MAX_MEMORY - BYTES_PER_PIXEL * side * side) // 2
    return full(turned("RGBA", side, "PNG", compress_level=1), room)


def most(pixels: int) -> int:
    """The side of the largest square."""
    return int(pixels**0.5)


LAUGHS = b"<!DOCTYPE a [" + b"".join(
    b'<!ENTITY l%d "%s">' % (i + 1, b"&l%d;" % i * 10) for i in range(9)
)
SVG = LAUGHS + b"]><svg><script>1</script><image href='file:///etc/passwd'/>&l9;</svg>"
EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch canary) (w) file"
)

Builder = Callable[[], bytes]
# Name, what makes the file, and the words of the refusal; none where the image is read.
IMAGES: list[tuple[str, str, Builder, str]] = [
    ("zero bytes", "png", lambda: b"", "is no PNG"),
    ("half a png", "png", lambda: PNG[3][: len(PNG[3]) // 2], "truncated"),
    ("half a jpeg", "jpg", lambda: encode(RED, "JPEG")[:-20], "truncated"),
    ("half a webp", "webp", lambda: encode(RED, "WEBP", lossless=True)[:-9], "."),
    ("pixels of noise", "png", lambda: png(64, 64, chunk(b"IDAT", bytes(range(99)))), "."),
    ("no pixels", "png", lambda: png(64, 64), "."),
    ("no width", "png", lambda: png(0, 64, chunk(b"IDAT", deflated(64))), "."),
    ("claims 2**62 pixels", "png", lambda: png(2**31 - 1, 2**31 - 1), "the most is 50,000,000"),
    (
        "a deflate bomb",
        "png",
        lambda: png(12_000, 10_000, chunk(b"IDAT", deflated(1501 * 10_000))),
        "12000x10000 pixels",
    ),
    ("a jpeg of 65500x65500", "jpg", jpeg_that_claims, "65500x65500 pixels"),
    (
        "a webp of 16384x16384",
        "webp",
        lambda: b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\x3f\0" * 2,
        ".",
    ),
    (
        "a webp of 38 bytes",
        "webp",
        lambda: encode(Image.new("RGB", (5001, 5000)), "WEBP", lossless=True, method=0),
        "5001x5000 pixels; the most is 24,500,000",
    ),
    ("a zTXt bomb", "png", lambda: with_chunk(chunk(b"zTXt", b"a\0\0" + deflated(10**8))), "large"),
    (
        "an iTXt bomb",
        "png",
        lambda: with_chunk(chunk(b"iTXt", b"a\0\1\0\0\0" + deflated(10**8))),
        "large",
    ),
    (
        "many texts",
        "png",
        lambda: with_chunk(chunk(b"zTXt", b"a\0\0" + deflated(10**6)) * 99),
        "large|memory",
    ),
    (
        "a colour profile bomb",
        "png",
        lambda: with_chunk(chunk(b"iCCP", b"a\0\0" + deflated(10**8))),
        "large|",
    ),
    ("scans without end", "jpg", many_scans, "scans"),
    ("a gif as jpg", "jpg", lambda: encode(RED, "GIF"), "is no PNG"),
    ("an animated gif", "webp", lambda: animated("GIF", 3000), "is no PNG"),
    ("a tiff as png", "png", lambda: encode(RED, "TIFF"), "is no PNG"),
    ("an svg that laughs", "png", lambda: SVG, "is no PNG"),
    ("a page as jpeg", "jpeg", lambda: b"<html><script>alert(1)</script>", "is no PNG"),
    ("postscript that runs", "png", lambda: EPS, "is no PNG"),
    ("a pickle as png", "png", lambda: PICKLE, "is no PNG"),
    ("a file of too many bytes", "png", lambda: PNG[3] + bytes(2**26), "more than"),
    (
        "many pixels in many bytes",
        "png",
        lambda: full(png(7000, 7000, bits=8), MAX_BYTES),
        "to decode; the most is 400,000,000",
    ),
    ("a jpeg as png", "png", lambda: encode(RED, "JPEG"), ""),
    ("an animated png", "png", lambda: animated("PNG", 2000), ""),
    ("an animated webp", "webp", lambda: animated("WEBP", 1000), ""),
    (
        "xmp that laughs",
        "png",
        lambda: with_chunk(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + LAUGHS)),
        "",
    ),
    (
        "the largest png",
        "png",
        fullest,
        "",
    ),
    (
        "the largest jpeg",
        "jpg",
        lambda: turned("CMYK", most(MAX_PIXELS_HELD), "JPEG", progressive=True),
        "",
    ),
    (
        "the largest webp",
        "webp",
        lambda: turned("RGBA", most(MAX_PIXELS_HELD), "WEBP", lossless=True, method=0),
        "",
    ),
]
