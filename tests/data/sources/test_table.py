import csv
import functools
import http.server
import json
import math
import sys
import threading
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import UserError
from conf.groups import TableSource
from data.image import encode_png
from data.sources import BadSample
from data.sources.table import choose_caption
from data.storage import open_prefix
from tests.helpers.datasets import files_of, tiny_image, tiny_images, whole_source


def _table(path, **settings):
    return whole_source(TableSource(path=str(path), **settings))


def _write(path, rows):
    """The same rows in whichever format the name asks for; `image` may be bytes in a .parquet."""
    match path.suffix:
        case ".csv" | ".tsv":
            with path.open("w", newline="", encoding="utf-8") as file:
                delimiter = "\t" if path.suffix == ".tsv" else ","
                writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
                writer.writeheader()
                writer.writerows(rows)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return path


def _rows(folder, count=8):
    tiny_images(folder / "photos", count, 16)
    return [
        {"image": f"photos/{i:03d}.png", "caption": f'a "{i}", ä\n', "n": i} for i in range(count)
    ]


def _bad(source, key):
    with pytest.raises(BadSample) as caught:
        source.pair(key)
    assert "\n" not in str(caught.value)
    return caught.value


def _refused(path, **settings):
    with pytest.raises(UserError) as caught:
        _table(path, **settings)
    assert "\n" not in str(caught.value)
    return caught.value


# --- what is read


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_every_format_gives_the_same_pairs(tmp_path, name):
    source = _table(_write(tmp_path / name, _rows(tmp_path)))
    assert source.keys == tuple(f"{i:09d}" for i in range(8))
    for i in (7, 0, 3, 2):  # rows are found wherever they stand
        pair = source.pair(source.keys[i])
        assert np.array_equal(pair.image, tiny_image(i, 16))
        assert (pair.key, pair.caption) == (f"{i:09d}", f'a "{i}", ä')
        assert float(pair.meta["n"]) == i
        assert pair.meta["original_size"] == [16, 16]
        assert pair.meta["group"] == pair.key


@pytest.mark.parametrize("nested", [False, True])
def test_a_parquet_may_hold_the_images_themselves(tmp_path, nested):
    files = [encode_png(tiny_image(i, 16)) for i in range(7)]
    images = [{"bytes": file, "path": None} for file in files] if nested else files
    rows = [{"image": image, "caption": "c"} for image in images]
    source = _table(_write(tmp_path / "t.parquet", rows))
    for i in range(7):
        assert np.array_equal(source.pair(f"{i:09d}").image, tiny_image(i, 16))


def test_a_table_may_lie_anywhere(url, tmp_path):
    for name in ("t.csv", "t.parquet"):
        _write(tmp_path / name, _rows(tmp_path))
    for name, content in files_of(tmp_path).items():
        open_prefix(url, "out").write(name, content)
    for name in ("t.csv", "t.parquet"):
        assert np.array_equal(_table(f"{url}/{name}").pair("000000005").image, tiny_image(5, 16))


def test_images_may_lie_at_urls_and_absolute_paths(tmp_path, url):
    tiny_images(tmp_path, 2, 16)
    open_prefix(url, "out").write("below/it.png", encode_png(tiny_image(1, 16)))
    images = [
        f"{tmp_path}/000.png",
        f"file://{tmp_path}/000.png",
        "./a/../000.png",
        f"{url}/below/it.png",
    ]
    rows = [{"image": image, "caption": "c"} for image in images]
    source = _table(_write(tmp_path / "t.csv", rows))
    for key, number in zip(source.keys, (0, 0, 0, 1), strict=True):
        assert np.array_equal(source.pair(key).image, tiny_image(number, 16))


def test_images_come_from_a_web_server_and_dead_links_are_bad(tmp_path):
    tiny_images(tmp_path / "www", 1, 16)
    handler = functools.partial(_Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        urls = [
            f"{base}/000.png",
            f"{base}/000.png?s=1",
            f"{base}/none.png",
            "http://127.0.0.1:1/a",
        ]
        rows = [{"image": one, "caption": "c"} for one in urls]
        source = _table(_write(tmp_path / "t.jsonl", rows))
        for key in source.keys[:2]:
            assert np.array_equal(source.pair(key).image, tiny_image(0, 16))
        assert _bad(source, source.keys[2]).detail == "there is no file at its URL"
        assert _bad(source, source.keys[3]).detail == "its URL cannot be read"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_columns_are_named_by_the_settings(tmp_path):
    tiny_images(tmp_path, 1, 16)
    rows = [{"file": "000.png", "alt": "a", "text": "b", "group": 7, "image": "x", "tags": "y"}]
    source = _table(
        _write(tmp_path / "t.jsonl", rows), image_column="file", caption_columns=["alt"]
    )
    assert source.pair("000000000").caption == "a"
    assert source.pair("000000000").meta == {
        "original_size": [16, 16],
        "group": "7",
        "image": "x",
        "tags": "y",
        "text": "b",
    }


def test_what_json_cannot_say_stays_out_of_the_metadata(tmp_path):
    tiny_images(tmp_path, 1, 16)
    line = '{"image": "000.png", "caption": "c", "a": NaN, "b": 1e999, "c": [1], "d": 2.5}'
    (tmp_path / "t.jsonl").write_text(line)
    meta = _table(tmp_path / "t.jsonl").pair("000000000").meta
    assert {"a", "b", "c"}.isdisjoint(meta) and meta["d"] == 2.5


# --- captions


def test_a_caption_is_drawn_by_key_and_weights_alone():
    keys = [f"{i:09d}" for i in range(4000)]
    drawn = [choose_caption(["a", "b", "c"], [1, 3, 0], key) for key in keys]
    assert drawn == [choose_caption(["a", "b", "c"], [1, 3, 0], key) for key in keys]
    assert drawn == [choose_caption(["a", "b", "c"], [10, 30, 0], key) for key in keys]
    share = Counter(drawn)["b"] / 4000
    assert abs(share - 0.75) < 5 * math.sqrt(0.75 * 0.25 / 4000)
    assert "c" not in drawn
    shares = Counter(choose_caption(["a", "b", "c", "d"], [2, 1, 0, 1], key) for key in keys)
    assert all(
        abs(shares[c] / 4000 - s) < 0.035 for c, s in zip("abcd", (0.5, 0.25, 0, 0.25), strict=True)
    )


def test_the_captions_drawn_never_change():
    """A dataset made again with a later version must be the same."""
    drawn = "".join(choose_caption(["a", "b"], [1, 1], f"{i:09d}") for i in range(16))
    assert drawn == "bbabbbbabbbbbaaa"


def test_a_caption_that_is_missing_is_not_drawn():
    for i in range(50):
        assert choose_caption([None, " b ", "", 4], [5, 1, 5, 5], str(i)) == "b"
    assert choose_caption([None, " ", "c"], [1, 1, 0], "0") is None


def test_weights_are_part_of_the_identity(tmp_path):
    rows = [{**row, "alt": "other"} for row in _rows(tmp_path)]
    path, columns = _write(tmp_path / "t.csv", rows), ["caption", "alt"]
    equal = _table(path, caption_columns=columns)
    assert equal.settings == _table(path, caption_columns=columns, caption_weights=[1, 1]).settings
    weighed = _table(path, caption_columns=columns, caption_weights=[0, 1])
    assert weighed.settings != equal.settings
    assert {weighed.pair(key).caption for key in weighed.keys} == {"other"}
    assert len({equal.pair(key).caption == "other" for key in equal.keys}) == 2


# --- what is bad in a row


@pytest.mark.parametrize(
    ("image", "caption", "kind", "detail"),
    [
        ("none.png", "c", "no image", "there is no such file"),
        ("", "c", "no image", ""),
        (None, "c", "no image", ""),
        (5, "c", "no image", ""),
        ("../000.png", "c", "bad image", "is no path in the table's folder"),
        ("a/../../000.png", "c", "bad image", "is no path in the table's folder"),
        ("\ud800.png", "c", "bad image", "is no path in the table's folder"),
        ("a\0.png", "c", "bad image", "is no path in the table's folder"),
        ("a\nb.png", "c", "no image", "there is no such file"),
        (".", "c", "no image", "is no file"),
        ("000.png/a", "c", "no image", "is no file"),
        ("a" * 9999, "c", "no image", "is no file"),
        ("pipe://cat", "c", "no image", "its URL cannot be read"),
        ("s3://key:secret@bucket/a.png", "c", "no image", "its URL cannot be read"),
        ("t.jsonl", "c", "bad image", "is no PNG, JPEG or WebP, or its header is damaged"),
        ("000.png", "  ", "no caption", ""),
        ("000.png", None, "no caption", ""),
        ("000.png", "\ud800", "caption is no text", "has half of a surrogate pair"),
    ],
)
def test_a_bad_row_is_named(tmp_path, image, caption, kind, detail):
    tiny_images(tmp_path, 1, 16)
    rows = [{"image": "000.png", "caption": "c"}, {"image": image, "caption": caption}]
    source = _table(_write(tmp_path / "t.jsonl", rows))
    source.pair("000000000")
    fault = _bad(source, "000000001")
    assert (fault.kind, fault.detail) == (kind, detail)
    assert fault.where.startswith("row 1") and "secret" not in str(fault)


def test_a_row_that_is_no_row_is_bad(tmp_path):
    tiny_images(tmp_path, 1, 16)
    (tmp_path / "t.csv").write_text("image,caption\n000.png,c\n000.png\n000.png,c,d\n")
    good = json.dumps({"image": "000.png", "caption": "c"})
    (tmp_path / "t.jsonl").write_bytes(f"{good}\n\n[1]\n{'[' * 99999}\n".encode() + b"\xe9\n")
    for name, bad in (("t.csv", 2), ("t.jsonl", 3)):
        source = _table(tmp_path / name)
        assert source.pair("000000000").caption == "c"
        assert len(source.keys) == 1 + bad
        assert {_bad(source, key).kind for key in source.keys[1:]} == {"bad row"}


def test_a_table_from_elsewhere_names_no_local_file(tmp_path, url):
    tiny_images(tmp_path, 1, 16)
    rows = [{"image": f"{scheme}{tmp_path}/000.png", "caption": "c"} for scheme in ("", "file://")]
    content = _write(tmp_path / "t.csv", rows).read_bytes()
    open_prefix(url, "out").write("t.csv", content)
    source = _table(f"{url}/t.csv")
    for key in source.keys:
        if open_prefix(url, "out").local:
            source.pair(key)
        else:
            assert "names a local file" in _bad(source, key).detail


# --- what only the user can mend


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("t.csv", b"image,caption\n", "has no pairs"),
        ("t.csv", b"", "has no pairs"),
        ("t.csv", b"image,caption\n\xe9,c\n", "is damaged"),
        ("t.csv", b"image,caption,image\na,b,c\n", "two columns of one name"),
        ("t.jsonl", b"", "has no pairs"),
        ("t.parquet", b"PAR1", "is damaged"),
        ("t.xlsx", b"", "is no table"),
        ("t.csv", None, "is not there"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path, name, content, wrong):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    error = _refused(tmp_path / name)
    assert error.setting == f"source.path={tmp_path / name}" and wrong in error.wrong


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"image_column": "img"}, "source.image_column=img"),
        ({"caption_columns": ["caption", "alt"]}, "source.caption_columns=alt"),
    ],
)
def test_a_column_that_is_not_there_is_named(tmp_path, suffix, settings, setting):
    error = _refused(_write(tmp_path / f"t.{suffix}", _rows(tmp_path)), **settings)
    assert error.setting == setting and "image, caption, n" in error.remedy


def test_a_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    path = _write(tmp_path / "t.parquet", _rows(tmp_path))
    for module in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, module, None)
    assert _refused(path).remedy == "pip install 'latent-foundry[table]'"


def test_a_table_that_changes_is_read_again_and_is_another_source(tmp_path):
    rows = _rows(tmp_path)
    before = _table(_write(tmp_path / "t.csv", rows))
    after = _table(_write(tmp_path / "t.csv", [{**row, "caption": "new"} for row in rows]))
    assert before.settings != after.settings
    assert after.pair("000000000").caption == "new"
