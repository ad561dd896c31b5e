"""Finished datasets of somebody who means harm: hashes and fingerprint are right."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.arrays import dump_array
from data.manifest import NAME, Manifest, Shard, sha256
from data.sample import CAPTION, META, MOMENTS, TEXT, RawSample
from data.tar import index_tar, write_tar
from tests.helpers.datasets import (
    IMAGE_MEMBERS,
    LATENT_MEMBERS,
    latent_samples,
    raw_samples,
    write_images,
    write_latents,
)
from tests.helpers.zoo.animal import CODE, PICKLE, Animal, pickled_array, sparse

Build = Callable[[Path], None]


def manifest(**changes: Any) -> Build:
    """Images whose manifest says something else, under its right fingerprint."""

    def build(folder: Path) -> None:
        there = write_images(str(folder), 2, 2)
        _pin(folder, replace(there, **changes))

    return build


def shard(**changes: Any) -> Build:
    """The same of its second shard."""

    def build(folder: Path) -> None:
        there = write_images(str(folder), 2, 2)
        first, second = there.shards
        _pin(folder, replace(there, shards=(first, replace(second, **changes))))

    return build


def spec(**changes: Any) -> Build:
    """Latents whose spec is another."""

    def build(folder: Path) -> None:
        there = write_latents(str(folder), 2)
        _pin(folder, replace(there, latents=replace(there.latents, **changes)))

    return build


def words(content: bytes | None = None, size: int = 0, **fields: Any) -> Build:
    """A manifest of the given bytes, or with fields that none has."""

    def build(folder: Path) -> None:
        write_images(str(folder), 2)
        if size:
            sparse(folder / NAME, size, b"{")
            return
        raw = json.loads((folder / NAME).read_bytes())
        (folder / NAME).write_bytes(
            json.dumps(raw | fields).encode() if content is None else content
        )

    return build


def index(change: Callable[[Any], Any]) -> Build:
    """Images whose index is changed, or is what `change` gives, and pinned."""

    def build(folder: Path) -> None:
        there = write_images(str(folder), 2)
        file = folder / there.shards[0].index
        rows = np.load(file)
        content = change(rows)
        file.write_bytes(content if isinstance(content, bytes) else dump_array(rows))
        _pin(folder, replace(there, shards=(_pinned(there.shards[0], folder),)))

    return build


def members(**contents: bytes | None) -> Build:
    """A dataset whose second sample has other members, under its right checksums."""
    latent = MOMENTS in contents or TEXT in contents

    def build(folder: Path) -> None:
        write = write_latents if latent else write_images
        there, samples = write(str(folder), 3), (latent_samples if latent else raw_samples)(3)
        changed = {k: v for k, v in (samples[1].members | contents).items() if v is not None}
        samples[1] = RawSample(samples[1].key, changed)
        names = LATENT_MEMBERS if latent else IMAGE_MEMBERS
        content = write_tar(samples)
        (folder / there.shards[0].tar).write_bytes(content)
        (folder / there.shards[0].index).write_bytes(dump_array(index_tar(content, names, "")))
        _pin(folder, replace(there, shards=(_pinned(there.shards[0], folder),)))

    return build


def instead(name: str, put: Callable[[Path], Any]) -> Build:
    """Something else in the place of a file."""

    def build(folder: Path) -> None:
        write_images(str(folder), 2)
        (folder / name).unlink()
        put(folder / name)

    return build


def _pin(folder: Path, changed: Manifest) -> None:
    (folder / NAME).write_bytes(changed.to_json())


def _pinned(record: Shard, folder: Path) -> Shard:
    tar, rows = (folder / record.tar).read_bytes(), (folder / record.index).read_bytes()
    return replace(record, bytes=len(tar), sha256=sha256(tar), index_sha256=sha256(rows))


def set_to(field: str, row: int, value: Any) -> Callable[[Any], None]:
    def change(rows: Any) -> None:
        rows[field][row] = value

    return change


def npy(header: str, content: bytes = b"") -> bytes:
    """An .npy file of a header of any words."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def _header(shape: str, descr: str = "'<f2'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


EVAL = "{'descr': __import__('os').system('touch canary'), 'fortran_order': False, 'shape': (1,)}"


def _as_first(rows: Any) -> None:
    rows[1] = rows[0]
    rows["key"][1] = b"other"


def _manifests() -> Iterator[Animal]:
    """Refused before anything else is read."""
    nested = b"[" * 100_000
    for name, build, says in (
        ("a shard named ../", shard(name="../x"), "leave the dataset"),
        ("a tar named ../", shard(tar="../../secret/words.txt"), "leave the dataset"),
        ("an absolute tar", shard(tar="/etc/passwd"), "leave the dataset"),
        ("a name that is a list", shard(name=["x"]), "leave the dataset|unhashable"),
        ("two shards of one name", shard(name="00000"), "names twice"),
        ("a negative count", shard(buckets=(-2,)), "counts"),
        ("2**60 samples", shard(buckets=(2**60,)), "more samples"),
        ("negative bytes", shard(bytes=-1), "counts"),
        ("bytes that are true", shard(bytes=True), "counts"),
        ("a hash of ../", shard(sha256="../../x"), "hashes"),
        ("tars of pipe:", manifest(tars="pipe:touch canary"), "URL"),
        ("tars of a chain", manifest(tars="simplecache::file:///etc"), "URL"),
        ("tars with credentials", manifest(tars="s3://key:secret@bucket/a"), "credentials"),
        ("tars that are a list", manifest(tars=["pipe:touch canary"]), "no texts"),
        ("a bucket of no size", manifest(buckets=((0, 8),)), "buckets"),
        ("a bucket of 2**40", manifest(buckets=((2**40, 2**40),)), "buckets"),
        ("a member twice", manifest(members=("png", "png", "txt")), "members of one name"),
        ("a kind of its own", manifest(kind="pickles"), "kind"),
        ("latents of no size", spec(downsampling=0), "of no size"),
        ("latents of objects", spec(dtype="object"), "floats"),
        ("an infinite side", words(buckets=[[float("inf"), 8]]), "no manifest"),
        ("a field to instantiate", words(shards=[{"_target_": "os.system"}]), "no manifest"),
        ("a surrogate", words(identity="x", kind="images", parent="\ud800"), "manifest|changed"),
        ("another fingerprint", words(fingerprint="0" * 64), "was changed"),
        ("another format", words(format="9" * 9999), "has format '9"),
        ("a manifest of zeros", words(bytes(999)), "no manifest"),
        ("a manifest without a bottom", words(nested), "no manifest"),
        ("a pickle as manifest", words(PICKLE), "no manifest"),
        ("a manifest of 1 GB", words(size=2**30), "the most is"),
    ):
        yield Animal(f"dataset: {name}", build, says=says, code=2, read=(2, says))


def _contents() -> Iterator[Animal]:
    """What the manifest pins is wrong: exit code and words of `ldm verify`, then of reading."""
    no_index, missing = (1, "is no index|fit the manifest"), (1, "missing")
    zeros = npy(_header("(2,)", "[('key', '|S2'), ('bucket', '<u2')]"), bytes(8))
    for name, build, says, read in (
        ("settings to instantiate", manifest(settings={"_target_": "os.system"}), "", (0, "")),
        ("2**50 bytes", shard(bytes=2**50), "cut", (1, "bytes")),
        ("an index of pickles", index(lambda _: pickled_array()), "pickled", no_index),
        ("an index of 10**15 rows", index(lambda _: npy(_header("(10**15,)"))), "header", no_index),
        ("a header of 10**15", index(lambda _: npy(_header(f"({10**15},)"))), "fill", no_index),
        ("a header of code", index(lambda _: npy(EVAL)), "header", no_index),
        ("an index of other rows", index(lambda _: zeros), "another kind", no_index),
        ("an index of two axes", index(lambda r: dump_array(r.reshape(2, 1))), "kind", no_index),
        ("an index of 1 GB", instead("index/00000.npy", lambda p: sparse(p, 2**30)), "the most is",
         (2, "the most is")),
        ("a pipe as index", instead("index/00000.npy", os.mkfifo), "plain file", (2, "plain")),
        ("a pipe as tar", instead("shards/00000.tar", os.mkfifo), "plain file", (2, "plain")),
        ("a tar linked from outside", instead("shards/00000.tar", _link_out), "cut|other",
         (1, "bytes")),
        ("a tar linked to nowhere", instead("shards/00000.tar", lambda p: p.symlink_to("no")),
         "missing", missing),
        ("rows that overlap", index(_as_first), "overlap", (0, "")),
        ("a length of -5", index(set_to("length", (1, 0), -5)), "png|image", (2, "no image")),
        ("a length of 2**62", index(set_to("length", (1, 0), 2**62)), "behind the end",
         (1, "are not those")),
        ("an offset of 2**63", index(set_to("offset", (1, 0), 2**63)), "behind the end",
         (1, "are not those")),
        ("a bucket of 9", index(set_to("bucket", 1, 9)), "of the buckets", no_index),
        ("a key of escapes", index(set_to("key", 1, b"\x1b\n")), r"\\x1b\\n", (0, "")),
        ("a key in Latin-1", index(set_to("key", 1, b"\xe9")), r"\\xe9", (0, "")),
        ("json that is a list", members(**{META: b"[1]"}), "no JSON object", (1, "no JSON object")),
        ("json of noise", members(**{META: b"\xff{"}), "cannot be read", (1, "is no JSON")),
        ("json without a bottom", members(**{META: b"[" * 99_999}), "recursion", (1, "is no JSON")),
        ("a caption in Latin-1", members(**{CAPTION: b"\xe9"}), "utf-8", (1, "no caption")),
        ("no caption", members(**{CAPTION: None}), "", (1, "no caption")),
        ("no image", members(png=None), "no image", (2, "has no image")),
        ("a program as image", members(png=CODE), "is no PNG", (2, "is no PNG")),
        ("moments of pickles", members(**{MOMENTS: pickled_array()}), "pickled", (1, "no array")),
        ("moments of 10**15", members(**{MOMENTS: npy(_header(f"({10**15},)"))}), "fill",
         (1, "no array")),
        ("moments of code", members(**{MOMENTS: npy(EVAL)}), "header", (1, "no array")),
        ("moments of nothing", members(**{MOMENTS: npy(_header(f"(0, {2**61})"))}), "is an array",
         (1, "no array")),
        ("a text of no axis", members(**{TEXT: npy(_header("()"), b"\0\0")}), "tokens",
         (1, "others are")),
        ("a text of zeros of 2**60", members(**{TEXT: npy(_header(f"(0, {2**60})"))}), "tokens",
         (1, "no array")),
        ("moments that are NaN", members(**{MOMENTS: dump_array(
            np.full((4, 4, 4), np.nan, dtype=np.float16))}), "not finite", (0, "")),
    ):  # fmt: skip
        yield Animal(f"dataset: {name}", build, says=says, code=1 if says else 0, read=read)


def _link_out(path: Path) -> None:
    path.symlink_to(path.parents[3] / "secret" / "words.txt")


def datasets() -> Iterator[Animal]:
    yield from _manifests()
    yield from _contents()
