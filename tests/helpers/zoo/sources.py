"""Folders and tables that nobody vouches for."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers.tars import PNG
from tests.helpers.zoo.animal import CODE, GOOD, PICKLE, Animal, good_files, secret_of, sparse
from tests.helpers.zoo.images import IMAGES

# --- folders: each animal is the pair `bad`


def _folder(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        good_files(folder)
        make(folder)

    return build


def _pair(
    image: bytes = PNG[2], text: bytes = b"caption bad", key: str = "bad"
) -> Callable[[Path], None]:

    def make(folder: Path) -> None:
        (folder / f"{key}.png").write_bytes(image)
        (folder / f"{key}.txt").write_bytes(text)

    return make


def _image(extension: str, content: Callable[[], bytes]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / f"bad.{extension}").write_bytes(content())
        (folder / "bad.txt").write_text("caption bad")

    return make


def _instead(name: str, put: Callable[[Path], Any]) -> Callable[[Path], None]:
    """The pair with something else in the place of one of its files."""

    def make(folder: Path) -> None:
        _pair()(folder)
        (folder / name).unlink()
        put(folder / name)

    return make


def _link(target: str) -> Callable[[Path], Any]:
    return lambda path: path.symlink_to(target.format(secret=secret_of(path.parent)))


def _two_of_one_caption(folder: Path) -> None:
    (folder / "good1.jpg").write_bytes(PNG[0])


def _programs(folder: Path) -> None:
    for name in ("sitecustomize.py", "numpy.py", "PIL.py", "good1.pyd", "good1.pth", "conf.yaml"):
        (folder / name).write_bytes(CODE)
    (folder / "good1.pkl").write_bytes(PICKLE)


def folders() -> Iterator[Animal]:
    for name, extension, content, says in IMAGES:
        kind, reads = ("bad image", 0) if says else (None, 1)
        yield Animal(name, _folder(_image(extension, content)), kind, says, reads)
    plain, text = "not a plain file", "caption is no text"
    for name, make, *expected in (
        ("a caption in Latin-1", _pair(text=b"caf\xe9"), text),
        ("a caption in UTF-16", _pair(text="a".encode("utf-16")), text),
        ("a caption of 2 MB", _pair(text=b"a" * 2**21), "too large", "more than"),
        ("a caption of 1 GB", _instead("bad.txt", lambda path: sparse(path, 2**30)), "too large"),
        ("a caption with NUL", _pair(text=b"a\0b \x1b[2J caption bad"), None, "", 1),
        ("an image linked from outside", _instead("bad.png", _link("{secret}/image.png")), plain),
        ("a caption linked from outside", _instead("bad.txt", _link("{secret}/words.txt")), plain),
        ("a caption of zeros for ever", _instead("bad.txt", _link("/dev/zero")), plain),
        ("a link to nowhere", _instead("bad.png", _link("nowhere")), "no such file"),
        ("a link to itself", _instead("bad.png", _link("bad.png")), plain),
        ("a link to a good image", _instead("bad.png", _link("good1.png")), None, "", 1),
        ("a pipe as image", _instead("bad.png", os.mkfifo), plain),
        ("a pipe as caption", _instead("bad.txt", os.mkfifo), plain),
        ("a folder as image", _instead("bad.png", Path.mkdir), None),
        ("a newline in a name", _pair(b"", key="b\nd\x1b[2J"), "bad image", r"b\\nd\\x1b\[2J"),
        ("a name of dots", _pair(key="a.b..c"), None, "", 1),
        ("a name of nothing", _pair(key=""), None, "", 1),
        ("a name that is no UTF-8", _pair(key=os.fsdecode(b"b\xff")), None, "", 1),
        ("programs beside images", _programs, None),
    ):
        yield Animal(name, _folder(make), *expected)
    yield Animal(
        "two images of one caption", _folder(_two_of_one_caption), says="share one", code=2
    )


# --- tables


def _rows(*bad: str | bytes) -> Callable[[Path], None]:
    """A .jsonl of the neighbours with bad lines between."""

    def build(folder: Path) -> None:
        good_files(folder)
        (folder / "folder").mkdir()
        os.mkfifo(folder / "pipe.png")
        first, last = (
            json.dumps({"image": f"{key}.png", "caption": f"caption {key}"}).encode()
            for key in GOOD
        )
        lines = [line.encode() if isinstance(line, str) else line for line in bad]
        lines = [line.replace(b"SECRET", str(secret_of(folder)).encode()) for line in lines]
        (folder / "t.jsonl").write_bytes(b"\n".join((first, *lines, last)))

    return build


def _row(**cells: Any) -> Callable[[Path], None]:
    return _rows(json.dumps({"image": "good1.png", "caption": "caption bad", **cells}))


def _file(name: str, content: bytes) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        good_files(folder)
        (folder / name).write_bytes(content.replace(b"GOOD", _CSV))

    return build


def _parquet(images: pa.Array) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        good_files(folder)
        captions = ["caption good1", "caption bad", "caption good2"]
        pq.write_table(pa.table({"image": images, "caption": captions}), folder / "t.parquet")

    return build


_CSV = b"".join(f"{key}.png,caption {key}\n".encode() for key in GOOD)
_HEAD = b"image,caption\n"
_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_PATHS = [{"path": "good1.png"}, {"path": "pipe:touch canary"}, {"bytes": PNG[1]}]
_LISTS = [[PNG[0]], [PICKLE], [PNG[1]]]
_CELLS = (
    ("../", "../secret/image.png", "bad image", "no path"),
    ("an absolute path", "SECRET/words.txt", "bad image", "is no PNG"),
    ("file:// of a secret", "file://SECRET/words.txt", "bad image", "is no PNG"),
    ("file:// of passwd", "file:///etc/passwd", "bad image", "is no PNG"),
    ("pipe:", "pipe:touch canary", "no image", "no such file"),
    ("pipe://", "pipe://touch canary", "no image", "URL"),
    ("userinfo", "http://user:secret@127.0.0.1/a.png", "no image", "URL"),
    ("ssh://", "ssh://127.0.0.1/a.png", "no image", "URL"),
    ("a chain", "simplecache::file://SECRET/image.png", "no image", "URL"),
    ("zip:// in a chain", "zip://a.png::file://SECRET/a.zip", "no image", "URL"),
    ("reference://", "reference://a.png", "no image", "URL"),
    ("credentials", "s3://key:secret@bucket/a.png", "no image", "URL"),
    ("data:", "data:image/png;base64,iVBORw0KGgo=", "no image", ""),
    ("NUL", "good1.png\0.jpg", "bad image", "no path"),
    ("a newline and an escape", "a\n\x1b[2J.png", "no image", r"a\\n\\x1b"),
    ("10,000 characters", "a" * 10_000, "no image", "is no file"),
    ("a pipe", "pipe.png", "no image", "is no file"),
    ("a folder", "folder", "no image", "is no file"),
    ("a list of bytes", [137, 80, 78, 71], "no image", ""),
    ("bytes that are a text", {"bytes": "pipe:touch canary"}, "no image", ""),
)


def tables() -> Iterator[Animal]:
    for name, cell, kind, says in _CELLS:
        yield Animal(f"a cell of {name}", _row(image=cell), kind, says, path="t.jsonl")
    bad, deep = "bad row", "[" * 100_000
    good = '"image":"good1.png","caption":"caption bad"'
    for name, build, *expected in (
        ("a surrogate", _row(caption="\ud800"), "caption is no text"),
        ("NUL in a caption", _row(caption="\0 caption bad"), None, "", 1),
        ("NaN and 1e999", _rows(f'{{{good},"a":NaN,"b":-1e999}}'), None, "", 1),
        ("an int of 5,000 digits", _rows(f'{{{good},"a":{"9" * 5000}}}'), bad, "no JSON"),
        ("json without a bottom", _rows(f'{{{good},"a":{deep}}}'), bad, "recursion"),
        ("a column twice", _rows(f'{{"image":"a",{good}}}'), None, "", 1),
        ("a row that is a list", _rows("[1]"), bad, "no JSON object"),
        ("a row in Latin-1", _rows(b'{"caption":"\xe9"}'), bad, "utf-8"),
        ("a row of 2 MB", _rows(f'{{{good},"a":"{"a" * 2**21}"}}'), bad, "1,048,576"),
    ):
        yield Animal(name, build, *expected, path="t.jsonl")
    for name, path, build, *expected in (
        ("NUL in a csv", "t.csv", _file("t.csv", _HEAD + b"GOODa\0,b\n"), "bad image"),
        ("a csv row too short", "t.csv", _file("t.csv", _HEAD + b"GOODa\n"), bad, "1 cells"),
        (
            "a formula",
            "t.csv",
            _file("t.csv", _HEAD + b"GOODgood1.png,=cmd|'touch'!A0 caption bad\n"),
            None,
            "",
            1,
        ),
        ("parquet of a path", "t.parquet", _parquet(pa.array(_PATHS, _STRUCT)), "no image"),
        (
            "parquet of pickles",
            "t.parquet",
            _parquet(pa.array([PNG[0], PICKLE, PNG[1]])),
            "bad image",
        ),
    ):
        yield Animal(name, build, *expected, path=path)
    for name, path, build, says in (
        ("a field that laughs", "t.csv", _file("t.csv", _HEAD + b'"' + b"ha\n" * 10**6), "limit"),
        ("a quote that never ends", "t.csv", _file("t.csv", _HEAD + b'GOOD"a'), "damaged"),
        ("parquet of nested bytes", "t.parquet", _parquet(pa.array(_LISTS)), "no image 3"),
        ("a csv in Latin-1", "t.csv", _file("t.csv", _HEAD + b"GOOD\xe9,b\n"), "damaged"),
        ("a row of 1 GB", "t.jsonl", lambda f: sparse(f / "t.jsonl", 2**30, b"{"), "1,048,576"),
        ("a csv row of 1 GB", "t.csv", lambda f: sparse(f / "t.csv", 2**30, _HEAD), "1,048,576"),
        (
            "parquet of noise",
            "t.parquet",
            _file("t.parquet", b"PAR1" + b"\xff" * 99 + b"PAR1"),
            "damaged",
        ),
        ("a pickle as table", "t.pkl", _file("t.pkl", PICKLE), "is no table"),
        ("a pipe as table", "t.csv", lambda f: os.mkfifo(f / "t.csv"), "plain file"),
    ):
        yield Animal(name, build, says=says, code=2, path=path)
