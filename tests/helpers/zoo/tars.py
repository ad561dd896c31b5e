"""Tars that nobody vouches for."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.helpers.tars import PNG, Member, make_tar, tar_header, tar_sample
from tests.helpers.zoo.animal import CODE, GOOD, PICKLE, Animal, pickled_array, sparse
from tests.helpers.zoo.images import IMAGES

FIRST, LAST = (
    [(f"{key}.png", PNG[number]), (f"{key}.txt", f"caption {key}")]
    for number, key in enumerate(GOOD)
)
BLOCK = 512


def tar(*bad: Member | bytes) -> Callable[[Path], None]:
    """A tar of the neighbours with bad members, or headers byte by byte, between."""

    def build(folder: Path) -> None:
        (folder / "a.tar").write_bytes(_joined(bad))

    return build


def _joined(bad: tuple[Member | bytes, ...]) -> bytes:
    first, last = _open_ended(*FIRST), make_tar(*LAST)
    return (
        first + b"".join(one if isinstance(one, bytes) else _open_ended(one) for one in bad) + last
    )


def _open_ended(*members: Member) -> bytes:
    """The blocks of some members without the end mark."""
    buffer = io.BytesIO()
    archive = tarfile.open(fileobj=buffer, mode="w")  # noqa: SIM115 - closing would end it
    for member in members:
        item = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
        content = b"" if isinstance(member, tarfile.TarInfo) else member[1]
        content = content if isinstance(content, bytes) else content.encode()
        item.size = len(content)
        archive.addfile(item, io.BytesIO(content))
    return buffer.getvalue()


def header(name: str, size: bytes = b"00000000000\0", kind: bytes = b"0") -> bytes:
    """A header whose size field is as told, with a right checksum."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def extended(kind: bytes, content: bytes) -> bytes:
    """An extended header."""
    return header("x", f"{len(content):011o}\0".encode(), kind) + padded(content)


def pax(**values: str) -> bytes:
    """The extended header that pax has for the next member."""
    return extended(b"x", b"".join(record(*one) for one in values.items()))


def record(name: str, value: str) -> bytes:
    text = f" {name}={value}\n".encode()
    digits = next(n for n in range(1, 9) if len(str(len(text) + n)) == n)
    return str(len(text) + digits).encode() + text


def long_name(name: str) -> bytes:
    """The extended header that GNU has for the next member."""
    return extended(b"L", name.encode() + b"\0")


def whole(name: str, content: bytes) -> bytes:
    """A member in blocks."""
    return header(name, f"{len(content):011o}\0".encode()) + padded(content)


def words_for_all() -> bytes:
    """A global header of thousands of words, which tarfile copies for each member after it."""
    headers = (
        extended(b"g", b"".join(record(f"{number:x}{i:x}", "") for i in range(1500)))
        for number in range(10)
    )
    return b"".join(headers) + whole("good1.cls", b"") * 1500


def _members() -> Iterator[Animal]:
    """Bad samples among good ones, or members that are nobody's."""
    twice, plain, none = "member twice", "not a plain file", "no image"
    bad = tar_sample(2, "bad")
    for name, extension, content, says in IMAGES:
        if name in ("half a png", "a deflate bomb", "a pickle as png", "an animated webp"):
            kind, reads = ("bad image", 0) if says else (None, 1)
            members = ((f"bad.{extension}", content()), ("bad.txt", "caption bad"))
            yield Animal(f"{name} in a tar", tar(*members), kind, says, reads)
    for name, extension, content in (
        ("a pyd", "pyd", CODE), ("a py", "py", CODE), ("a pickle", "pickle", PICKLE),
        ("a pkl", "pkl", PICKLE), ("a pth", "pth", PICKLE), ("a cls", "cls", PICKLE),
        ("an npy of pickles", "npy", pickled_array()), ("a tar in a tar", "tar", make_tar(*bad)),
    ):  # fmt: skip
        yield Animal(f"{name} beside an image", tar((f"good1.{extension}", content)))
    links = (("a symlink", b"2"), ("a hard link", b"1"), ("a device", b"3"),
             ("a block device", b"4"), ("a fifo", b"6"), ("a sparse file", b"S"),
             ("a kind that is none", b"Z"))  # fmt: skip
    for name, kind in links:
        member = (
            tar_header("bad.png", kind, "/etc/passwd")
            if kind != b"S"
            else header("bad.png", kind=kind)
        )
        yield Animal(f"{name} as image", tar(member, ("bad.txt", "caption bad")), plain)
    for name, key in (("../", "../bad"), ("an absolute name", "/tmp/bad"), ("a/..", "a/../bad")):
        yield Animal(f"{name} in a tar", tar(*tar_sample(2, key)), plain, "leads out")
    for name, members, *expected in (
        ("a program alone", (("bad.pyd", CODE),), none),
        ("an absolute name of pax", (pax(path="/tmp/bad.png"), bad[0]), plain, "leads out"),
        ("a link of pax", (pax(linkpath="/etc/passwd"), tar_header("bad.png", b"2")), plain),
        ("dots in a key", tar_sample(2, "b.a.d"), none),
        ("an empty key", ((".png", PNG[2]), (".txt", "caption bad")), None, "", 1),
        ("a name of dots", (("...", PNG[2]),), none),
        ("two dots", (("..", PNG[2]),), plain),
        ("a newline and an escape", (("b\n\x1b[2J.png", b""), ("b\n\x1b[2J.txt", "")),
         "bad image", r"b\\n\\x1b"),
        ("a name in Latin-1",
         (whole("\udce9.png", PNG[2]), whole("\udce9.txt", b"caption bad")), None, "", 1),
        ("a name of 5,000 of pax", tar_sample(2, "b" * 5000), "too large", "5,004 characters"),
        ("a name of 5,000 of GNU", (long_name("b" * 5000 + ".png"), bad[0]), "too large",
         "5,004 characters"),
        ("a name with NUL of pax", (pax(path="b\0.png"), bad[0], pax(path="b\0.txt"), bad[1]),
         None, "", 1),
        ("a key that comes again", (*bad, ("good1.cls", ""), *bad), twice),
        ("two images of a key", (*bad, ("bad.webp", PNG[3])), twice),
        ("json that is a list", (*bad, ("bad.json", "[]")), "bad json"),
        ("json with NaN", (*bad, ("bad.json", '{"a": NaN, "b": 1e999}')), None, "", 1),
        ("json without a bottom", (*bad, ("bad.json", '{"a":' * 99_999)), "bad json", "recursion"),
        ("json of a surrogate", (*bad, ("bad.json", '{"a":"\\ud800"}')), "bad json", "surrogate"),
        ("json in UTF-16", (*bad, ("bad.json", "{}".encode("utf-16"))), "bad json", "utf-8"),
        ("json of 2 MB", (*bad, ("bad.json", b"[" + b"[]," * 700_000)), "too large"),
        ("a caption in Latin-1", (bad[0], ("bad.txt", b"\xe9")), "caption is no text"),
        ("a caption with NUL", (bad[0], ("bad.txt", b"\0 caption bad")), None, "", 1),
        ("a global header of thousands", (words_for_all(), *bad), None, "", 1),
    ):  # fmt: skip
        yield Animal(f"tar: {name}", tar(*members), *expected)
    other = tar_sample(3, "other")
    apart = tar(bad[0], other[0], bad[1], other[1])
    yield Animal("tar: interleaved keys", apart, reads=2, in_place="members apart")


def _whole(content: bytes, name: str = "a.tar") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _long_name_of_1_gb(folder: Path) -> None:
    sparse(folder / "a.tar", 2**30 + 2**20, header("x", f"{2**30:011o}\0".encode(), b"L"))


def _damaged() -> Iterator[Animal]:
    """Tars that are refused whole."""
    good = _joined(())
    huge = (0x80 << 88 | 2**80).to_bytes(12, "big")
    negative = (2**96 - 1536).to_bytes(12, "big")
    tower = extended(b"L", b"bad.png\0") * 3000
    flipped = bytearray(good)
    flipped[1] ^= 1
    for name, build, says in (
        ("cut", _whole(good[:1500]), "whole|cut"),
        ("of zero bytes", _whole(b""), "a.tar"),
        ("gzipped", _whole(gzip.compress(good)), "whole"),
        ("a pickle", _whole(PICKLE), "whole"),
        ("of text", _whole(b"tar" * 999), "whole"),
        ("two in one", _whole(good + good), "behind its end"),
        ("a checksum that is wrong", _whole(bytes(flipped)), "whole"),
        ("a negative size", tar(header("bad.png", negative), bytes(1024)), "negative|whole|end"),
        ("a size of octal overflow", tar(header("bad.png", b"7" * 12)), "whole|end|cut"),
        ("a size of 2**80", tar(header("bad.png", huge)), "whole|end|cut"),
        ("a size of pax below 0", tar(pax(size="-1024"), header("bad.png")), "negative|whole|end"),
        ("a size that is no number", tar(header("bad.png", b"-99999999999")), "whole|end|cut"),
        ("a pax header of 60,000 digits", tar(extended(b"x", b"1" * 60_000)), "extended header"),
        ("a long name of 1 GB", _long_name_of_1_gb, "extended header"),
        ("a tower of long names", tar(tower), "recursion|whole"),
        ("a pipe", lambda folder: os.mkfifo(folder / "a.tar"), "plain file"),
        ("a name that is no UTF-8", _whole(good, os.fsdecode(b"\xff.tar")), "no UTF-8"),
        ("a link to nowhere", lambda folder: (folder / "a.tar").symlink_to("none"), "a.tar"),
    ):
        yield Animal(f"tar: {name}", build, says=says, code=2)


def tars() -> Iterator[Animal]:
    yield from _members()
    yield from _damaged()
