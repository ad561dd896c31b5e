import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from conf.compose import compose_config
from conf.errors import UserError
from data.arrays import dump_array
from data.manifest import EMPTY_TEXT, NAME
from data.npy import parse_npy
from data.ranks import LAUNCHERS
from data.sample import MOMENTS, TEXT, RawSample
from data.storage import Prefix, open_prefix
from data.stream import open_dataset
from data.tar import index_tar, write_tar
from data.verify.sample import drawn_samples
from tests.helpers.damage import change_index, manifest_of, repin, run_verify
from tests.helpers.datasets import (
    IMAGE_MEMBERS,
    LATENT_MEMBERS,
    files_of,
    flip_bit,
    latent_samples,
    pickled_array,
    raw_samples,
    write_dataset,
    write_images,
    write_latents,
)


def _lines(capsys):
    return capsys.readouterr().out.splitlines()


def _faults(capsys):
    lines = _lines(capsys)
    return [line.removeprefix("broken: ") for line in lines if line.startswith("broken: ")]


def _only_fault(capsys, url, **settings):
    capsys.readouterr()
    assert run_verify(url, **settings) == 1
    (fault,) = _faults(capsys)
    return fault


@pytest.fixture
def latents(tmp_path):
    write_latents(str(tmp_path / "latents"), 3, 2)
    return tmp_path / "latents"


# --- whole datasets


@pytest.mark.parametrize("settings", [{}, {"decode": True}, {"samples": 4}, {"samples": 99}])
@pytest.mark.parametrize("write", [write_images, write_latents])
def test_a_whole_dataset_passes_on_every_storage(url, write, settings, capsys):
    manifest = write(url, 3, 2)
    assert run_verify(url, **settings) == 0
    (last,) = _lines(capsys)
    samples = min(settings.get("samples", 5), 5)
    start = f"verify: {samples} samples in 2 shards checked now, 0 shards before, 0 files broken; "
    assert last.startswith(start) and last.endswith(f"; fingerprint {manifest.fingerprint}")


def test_every_byte_is_read_once_and_in_pieces(raw, latents, monkeypatch):
    monkeypatch.setattr("data.verify.tar.PIECE", 1024)
    read, read_range, taken = Prefix.read, Prefix.read_range, []

    def counted(self, name, start, length):
        content = read_range(self, name, start, length)
        taken.append((name, start, len(content)))
        return content

    monkeypatch.setattr(Prefix, "read", lambda *a: taken.append(a[1]) or read(*a))
    monkeypatch.setattr(Prefix, "read_range", counted)
    for folder in (raw, latents):
        taken.clear()
        assert run_verify(folder, decode=True) == 0
        names = [name for name in taken if isinstance(name, str) and name != NAME]
        assert len(set(names)) == len(names)
        for shard in manifest_of(folder).shards:
            ranges = sorted(part[1:] for part in taken if part[0] == shard.tar and part[2])
            assert max(length for _, length in ranges) <= 1024
            assert [start for start, _ in ranges] == list(range(0, shard.bytes, 1024))
            assert sum(length for _, length in ranges) == shard.bytes


def test_a_flip_is_found_wherever_pieces_end(raw, capsys, monkeypatch):
    """Members that lie across the border of two pieces, or end there."""
    shard = raw / "shards" / "00000.tar"
    whole = shard.read_bytes()
    entry = open_dataset(str(raw), "images").index(0)[1]
    for piece in (512, 1024, 1536, 4096):
        monkeypatch.setattr("data.verify.tar.PIECE", piece)
        for column, extension in enumerate(IMAGE_MEMBERS):
            last = int(entry["offset"][column] + entry["length"][column]) - 1
            shard.write_bytes(flip_bit(whole, 8 * last))
            assert f" s1.{extension} bytes" in _only_fault(capsys, raw)


def test_names_longer_than_a_header_are_read(tmp_path):
    long = [RawSample(f"{'k' * 300}{i}", sample.members) for i, sample in enumerate(raw_samples(3))]
    write_dataset(str(tmp_path), [long], IMAGE_MEMBERS)
    assert run_verify(tmp_path, decode=True) == 0


# --- damaged tars


@pytest.mark.parametrize("extension", ["png", "txt", "json"])
def test_a_flip_is_named_with_its_shard_sample_and_bytes(raw, capsys, extension):
    entry = open_dataset(str(raw), "images").index(1)[0]
    column = ("png", "txt", "json").index(extension)
    start, length = int(entry["offset"][column]), int(entry["length"][column])
    shard = raw / "shards" / "00001.tar"
    shard.write_bytes(flip_bit(shard.read_bytes(), 8 * (start + length - 1) + 3))
    wanted = f"shards/00001.tar: s3.{extension} bytes {start} to {start + length} differ (expected "
    fault = _only_fault(capsys, raw)
    assert fault.startswith(f"{wanted}{int(entry['crc32'][column]):08x}, found ")
    assert _only_fault(capsys, raw, samples=5) == fault


def test_every_flip_is_found(raw, capsys):
    shard = raw / "shards" / "00000.tar"
    whole = shard.read_bytes()
    for place in range(0, len(whole), 97):
        shard.write_bytes(flip_bit(whole, 8 * place + place % 8))
        assert _only_fault(capsys, raw).startswith("shards/00000.tar: ")


def test_a_flip_between_the_samples_is_found(raw, capsys):
    shard = raw / "shards" / "00000.tar"
    shard.write_bytes(flip_bit(shard.read_bytes(), 8 * 200))
    wanted = "shards/00000.tar: has other bytes between its samples (expected "
    assert _only_fault(capsys, raw).startswith(wanted)


def test_every_cut_is_found(raw, capsys):
    shard = raw / "shards" / "00000.tar"
    whole = shard.read_bytes()
    for length in range(0, len(whole), 512):
        shard.write_bytes(whole[:length])
        assert run_verify(raw) == 1
        what = f"is cut: has {length:,} bytes, the manifest says {len(whole):,}"
        cut, *lost = _faults(capsys)
        assert cut == f"shards/00000.tar: {what}"
        ends = 512 * (1 + np.max(np.load(raw / "index" / "00000.npy")["offset"]) // 512)
        assert len(lost) == (length < ends)


def test_a_longer_tar_is_named(raw, capsys):
    shard = raw / "shards" / "00000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole + bytes(5000))
    what = f"has more than the {len(whole):,} bytes that the manifest says"
    assert _only_fault(capsys, raw) == f"shards/00000.tar: {what}"


@pytest.mark.parametrize("first", [0, 100])
def test_another_tar_in_its_place_is_named(raw, capsys, first):
    """Also one of the same length and layout."""
    shard = raw / "shards" / "00000.tar"
    shard.write_bytes(write_tar(raw_samples(3, first + 1)))
    wanted = "shards/00000.tar: is another tar (expected "
    assert _only_fault(capsys, raw).startswith(wanted)


@pytest.mark.parametrize("settings", [{}, {"samples": 5}])
@pytest.mark.parametrize("name", ["shards/00001.tar", "index/00001.npy"])
def test_a_missing_file_is_named_on_every_storage(url, capsys, name, settings):
    write_images(url, 3, 2)
    open_prefix(url, "out").remove(name)
    assert _only_fault(capsys, url, **settings) == f"{name}: is missing"


def test_a_file_that_cannot_be_read_is_named(raw, capsys):
    for name in ("shards/00000.tar", "index/00001.npy"):
        (raw / name).unlink()
        (raw / name).mkdir()
    assert run_verify(raw) == 1
    tar, index = _faults(capsys)
    assert tar.startswith("shards/00000.tar: cannot be read (")
    assert index.startswith("index/00001.npy: cannot be read (")


def test_everything_broken_is_named(raw, capsys):
    for name in ("00000", "00001"):
        shard = raw / "shards" / f"{name}.tar"
        content = bytearray(shard.read_bytes())
        content[512:516] = b"!!!!"
        shard.write_bytes(content)
    assert run_verify(raw, threads=2) == 1
    assert [fault[:16] for fault in _faults(capsys)] == ["shards/00000.tar", "shards/00001.tar"]


def test_files_that_are_not_listed_are_noted(raw, capsys):
    (raw / "shards" / "more\x1b.tar").write_bytes(b"")
    (raw / "index" / "more.npy").write_bytes(b"")
    assert run_verify(raw) == 0
    first, second, _ = _lines(capsys)
    assert first == "note: 'shards/more\\x1b.tar' is not in the manifest"
    assert second == "note: 'index/more.npy' is not in the manifest"


# --- damaged or wrong indexes


def test_a_damaged_index_is_named(raw, capsys):
    index = raw / "index" / "00001.npy"
    index.write_bytes(flip_bit(index.read_bytes(), 8 * 150))
    wanted = "index/00001.npy: is not the index that the manifest pins (expected "
    assert _only_fault(capsys, raw).startswith(wanted)


def _second_behind_the_end(index):
    index["offset"][1, 0] = 2**40


def _length_behind_everything(index):
    index["length"][1, 0] = 2**62


def _overlapping(index):
    index["offset"][1, 0] = index["offset"][0, 0]


def _unaligned(index):
    index["offset"][1, 0] += 7


def _of_another_key(index):
    index["key"][1] = b"s7"


def _captions_swapped(index):
    for field in ("offset", "length", "crc32"):
        index[field][:2, 1] = index[field][1::-1, 1]


def _without_the_second(index):
    return index[[0, 2]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_second_behind_the_end, ["s1.png bytes 1099511627776 to ", "lie behind the end"]),
        (_length_behind_everything, ["lie behind the end"]),
        (_overlapping, ["overlap with "]),
        (_unaligned, ["begin where no member"]),
        (_of_another_key, ["s7.", "are 's1."]),
        (_captions_swapped, ["s1.txt", "are 's0.txt' in the tar"]),
    ],
)
def test_an_index_that_lies_is_named(raw, capsys, change, words):
    change_index(raw, 0, change)
    assert run_verify(raw) == 1
    faults = _faults(capsys)
    assert faults and all(fault.startswith("index/00000.npy: s") for fault in faults)
    assert all(word in faults[0] for word in words)


@pytest.mark.parametrize("kept", [[0, 2], [0, 1]])
def test_samples_that_are_not_indexed_are_named(raw, capsys, kept):
    change_index(raw, 0, lambda index: index[kept])
    first, second = manifest_of(raw).shards
    repin(raw, shards=(replace(first, buckets=(2,)), second))
    fault = _only_fault(capsys, raw)
    assert ("not in the index" if kept == [0, 2] else "the last members") in fault


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged header"),
        (pickled_array(), "pickled"),
        (dump_array(np.zeros(3)), "of another kind"),
        (dump_array(np.zeros((3, 3))), "of another kind"),
    ],
)
def test_what_is_no_index_is_named(raw, capsys, content, words):
    (raw / "index" / "00000.npy").write_bytes(content)
    repin(raw)
    assert words in _only_fault(capsys, raw)


def test_an_index_with_other_counts_is_named(raw, capsys):
    change_index(raw, 0, lambda index: index[:2])
    assert "has [2] samples of the buckets, the manifest [3]" in _only_fault(capsys, raw)


@pytest.mark.parametrize("shape", [(10**12,), (2, 2), (-1,), (-1, -3), (2**62, 2**62), ()])
def test_an_array_is_never_larger_than_its_file(shape):
    header = io.BytesIO()
    fields = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    with pytest.raises(ValueError, match="claims the shape"):
        parse_npy(header.getvalue() + bytes(24))


@pytest.mark.parametrize(
    "array", [np.arange(6.0), np.ones((0, 3), "<f2"), np.arange(6).reshape(2, 3).T]
)
def test_arrays_read_back(array):
    content = dump_array(array)
    assert np.array_equal(parse_npy(content), array)
    for damaged in (content[:-1], content + b" ", content[:40], b"", content[2:]):
        with pytest.raises(ValueError, match=r"damaged header|do not fill|claims"):
            parse_npy(damaged)


# --- decoding


def _image(**members):
    return [RawSample("s0", {**raw_samples(1)[0].members, **members})]


def _latent(**members):
    names = {"moments": MOMENTS, "text": TEXT, "json": "json"}
    changed = {names[name]: value for name, value in members.items()}
    return [RawSample("s0", {**latent_samples(1)[0].members, **changed})]


ZEROS = np.zeros((4, 4, 4), np.float16)


@pytest.mark.parametrize("settings", [{"decode": True}, {"samples": 9}])
@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (_image(png=b"no image"), ["s0.png", "cannot be read (is no PNG"]),
        (_image(txt=b"\xff\xfe"), ["s0.txt", "cannot be read ("]),
        (_image(json=b"{"), ["s0.json", "cannot be read ("]),
        (_image(json=b"[" * 100_000), ["s0.json", "cannot be read ("]),
        (_image(json=b"3"), ["s0.json", "no JSON object"]),
        ([RawSample("s0", {"txt": b"a"})], ["s0 has no image"]),
        (_latent(moments=dump_array(ZEROS[:3])), [MOMENTS, "of (3, 4, 4) float16, not (4, 4, 4)"]),
        (_latent(moments=dump_array(ZEROS.astype(np.float32))), [MOMENTS, "float32, not"]),
        (_latent(moments=dump_array(ZEROS + np.float16("nan"))), [MOMENTS, "not finite"]),
        (_latent(moments=pickled_array()), [MOMENTS, "pickled"]),
        (_latent(text=dump_array(np.zeros((78, 3), np.float16))), [TEXT, "has 78 tokens"]),
        (_latent(text=dump_array(np.zeros((0, 3), np.float16))), [TEXT, "has 0 tokens"]),
        (_latent(text=dump_array(np.zeros((2, 4), np.float16))), [TEXT, "of (2, 4) float16"]),
        ([RawSample("s0", {MOMENTS: dump_array(ZEROS)})], [f"s0 has no {TEXT}"]),
    ],
)
def test_what_cannot_be_decoded_is_named(tmp_path, capsys, samples, words, settings):
    """The hashes of such a sample are right: whoever made the dataset made it wrong."""
    latents = any(MOMENTS in sample.members for sample in samples)
    specs = {}
    if latents:
        whole = write_latents(str(tmp_path / "whole"), 1)
        specs = {"latents": whole.latents, "text": whole.text}
    out = tmp_path / "out"
    write_dataset(str(out), [samples], LATENT_MEMBERS if latents else IMAGE_MEMBERS, **specs)
    if latents:
        (out / EMPTY_TEXT).write_bytes((tmp_path / "whole" / EMPTY_TEXT).read_bytes())
    assert run_verify(out) == 0
    fault = _only_fault(capsys, out, **settings)
    assert fault.startswith("shards/00000.tar: s0") and all(word in fault for word in words)


def test_an_image_of_another_size_is_named(raw, capsys):
    repin(raw, buckets=((8, 16),))
    fault = run_verify(raw, decode=True)
    assert fault == 1 and "is an image of 8x8, not 8x16 pixels" in _faults(capsys)[4]


def test_arrays_are_read_by_many_threads():
    """Python 3.11's own parser, which numpy.load uses, raises SystemError now and then here."""
    content = dump_array(np.arange(6.0))
    with ThreadPoolExecutor(4) as pool:
        parsed = pool.map(lambda _: [parse_npy(content).sum() for _ in range(5000)], range(4))
        assert set().union(*parsed) == {15}


def test_a_manifest_that_is_spelt_otherwise_is_named(raw, capsys):
    manifest = raw / NAME
    manifest.write_text(json.dumps(json.loads(manifest.read_text())))
    assert _only_fault(capsys, raw) == f"{NAME}: is not spelt as it was written"


def test_the_empty_caption_is_checked(tmp_path, capsys):
    write_latents(str(tmp_path), 2)
    empty = tmp_path / EMPTY_TEXT
    empty.write_bytes(flip_bit(empty.read_bytes(), 8 * 130))
    assert "is not what the manifest pins (expected " in _only_fault(capsys, tmp_path)
    empty.write_bytes(dump_array(np.zeros((2, 9), np.float16)))
    repin(tmp_path)
    assert "is an array of (2, 9)" in _only_fault(capsys, tmp_path)
    empty.unlink()
    assert _only_fault(capsys, tmp_path) == f"{EMPTY_TEXT}: is missing"


def test_latents_of_tars_without_json_are_whole(tmp_path, capsys):
    write_latents(str(tmp_path / "usual"), 3)
    specs = {name: getattr(manifest_of(tmp_path / "usual"), name) for name in ("latents", "text")}
    samples = latent_samples(3)
    for sample in samples:
        del sample.members["json"]
    write_dataset(str(tmp_path / "bare"), [samples], LATENT_MEMBERS, **specs)
    (tmp_path / "bare" / EMPTY_TEXT).write_bytes((tmp_path / "usual" / EMPTY_TEXT).read_bytes())
    assert run_verify(tmp_path / "bare", decode=True) == 0, _faults(capsys)
    assert run_verify(tmp_path / "bare", samples=3) == 0, _faults(capsys)


# --- which samples are drawn


@pytest.mark.parametrize("counts", [[5], [1, 2, 3], [1000, 1, 999], [7] * 50])
@pytest.mark.parametrize("samples", [1, 4, 49, 10_000])
def test_the_draw_covers_all_shards_evenly(counts, samples):
    total, ends = sum(counts), np.cumsum(counts)
    drawn = drawn_samples(counts, samples, 3)
    places = np.sort(
        np.concatenate([ends[shard] - counts[shard] + rows for shard, rows in drawn.items()])
    )
    number = min(samples, total)
    assert len(places) == len(set(places.tolist())) == number
    borders = np.array([part * total // number for part in range(number + 1)])
    assert (borders[:-1] <= places).all() and (places < borders[1:]).all()
    assert all((rows >= 0).all() and (rows < counts[shard]).all() for shard, rows in drawn.items())


def test_the_draw_depends_on_the_seed_alone():
    def as_lists(seed):
        return {k: v.tolist() for k, v in drawn_samples([100] * 5, 20, seed).items()}

    assert as_lists(1) == as_lists(1) != as_lists(2)
    assert drawn_samples([], 5, 0) == {}


def test_only_the_indexes_of_shards_that_are_drawn_from_are_read(tmp_path, monkeypatch):
    write_images(str(tmp_path), *[2] * 6)
    read, names = Prefix.read, []
    monkeypatch.setattr(Prefix, "read", lambda *a: names.append(a[1]) or read(*a))
    assert run_verify(tmp_path, samples=2, threads=1) == 0
    assert len([name for name in names if name.startswith("index/")]) == 2


# --- tars that lie elsewhere


def _their_tar(of_a_camera):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for stem, members in (
            ("a", {of_a_camera: b"image a", "txt": b"a", "nfo": bytes(2000)}),
            ("lost", {"jpg": b"image"}),
            (f"./{'long' * 40}", {"jpg": b"image b", "txt": b"b"}),
            ("ümlaut", {"jpg": b"image c", "txt": b"c"}),
        ):
            for extension, content in members.items():
                item = tarfile.TarInfo(f"{stem}.{extension}")
                item.size = len(content)
                archive.addfile(item, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def adopted(tmp_path):
    """A dataset that indexes some of the samples of a tar of others."""
    tars, out, members = tmp_path / "tars", tmp_path / "out", ("jpg", "txt")
    samples = [RawSample(f"t~{i}", {"jpg": b"1", "txt": b"2"}) for i in range(3)]
    write_dataset(str(out), [samples], members)
    found = index_tar(_their_tar("jpg"), members, "theirs")
    index = np.load(out / "index" / "00000.npy")
    for field in ("offset", "length", "crc32"):
        index[field] = found[field][[0, 2, 3]]
    (out / "index" / "00000.npy").write_bytes(dump_array(index))
    (out / "shards" / "00000.tar").unlink()
    tars.mkdir()
    (tars / "theirs.tar").write_bytes(_their_tar("JPG"))
    (shard,) = manifest_of(out).shards
    repin(out, tars=str(tars), shards=(replace(shard, tar="theirs.tar"),))
    return out


def test_tars_elsewhere_may_hold_more_than_is_indexed(adopted):
    assert run_verify(adopted) == 0


@pytest.mark.parametrize("column", [0, 1])
def test_members_of_different_samples_are_named(adopted, capsys, column):
    def swapped(index):
        for field in ("offset", "length", "crc32"):
            index[field][1:, column] = index[field][:0:-1, column]

    change_index(adopted, 0, swapped)
    assert run_verify(adopted) == 1
    assert all(" in the tar" in fault for fault in _faults(capsys))


def test_a_flip_in_a_tar_elsewhere_is_named(adopted, tmp_path, capsys):
    tar = tmp_path / "tars" / "theirs.tar"
    tar.write_bytes(tar.read_bytes().replace(b"image c", b"image C"))
    wanted = "theirs.tar: t~2.jpg bytes "
    assert _only_fault(capsys, adopted).startswith(wanted)
    assert any(fault.startswith(wanted) for fault in _sampled(capsys, adopted))


def _sampled(capsys, url):
    assert run_verify(url, samples=3) == 1
    return _faults(capsys)


# --- ranks, threads and records


@pytest.mark.parametrize("names", LAUNCHERS)
def test_ranks_share_the_shards(tmp_path, capsys, monkeypatch, names):
    data, out = tmp_path / "data", tmp_path / "out"
    manifest = write_images(str(data), 1, 2, 3, 4, 5)
    (data / "shards" / "00004.tar").write_bytes(b"")
    for rank, code, said in ((0, 1, "9 samples in 3 shards"), (1, 0, "6 samples in 2 shards")):
        for name, value in zip(names, (rank, 2), strict=True):
            monkeypatch.setenv(name, str(value))
        assert run_verify(data, out=str(out)) == code
        assert (
            f"verify: rank {rank} of 2: {said} checked now, 0 shards before" in _lines(capsys)[-1]
        )
    assert sorted(file.stem for file in (out / "whole" / manifest.fingerprint).iterdir()) == [
        f"{i:06d}" for i in range(4)
    ]
    assert (out / "broken-0-of-2.json").exists() and (out / "broken-1-of-2.json").exists()


def test_a_rerun_checks_what_was_not_found_whole(url, tmp_path, capsys):
    manifest = write_latents(url, 3, 2, 2)
    prefix, out = open_prefix(url, "out"), f"{tmp_path}/out"
    whole = prefix.read("shards/00001.tar")
    entry = open_dataset(url, "latents").index(1)[0]
    prefix.write("shards/00001.tar", flip_bit(whole, 8 * int(entry["offset"][0])))
    for _ in range(2):
        assert run_verify(url, out=out) == 1
    said = "verify: 2 samples in 1 shards checked now, 2 shards before, 1 files broken"
    assert _lines(capsys)[-1].startswith(said)
    report = json.loads((tmp_path / "out" / "broken.json").read_bytes())
    (fault,) = report["broken"]
    assert report["fingerprint"] == manifest.fingerprint
    assert fault["file"] == "shards/00001.tar" and fault["kind"] == "flipped"
    assert fault["key"] == "s3" and fault["member"] == MOMENTS
    assert fault["start"] == int(entry["offset"][0]) and fault["expected"] != fault["found"]
    prefix.write("shards/00001.tar", whole)
    assert run_verify(url, out=out) == 0
    assert json.loads((tmp_path / "out" / "broken.json").read_bytes())["broken"] == []
    assert run_verify(url, out=out) == 0
    assert "0 samples in 0 shards checked now, 3 shards before" in _lines(capsys)[-1]
    assert run_verify(url, out=out, decode=True) == 0
    assert "7 samples in 3 shards checked now, 0 shards before" in _lines(capsys)[-1]


def test_records_are_of_one_content(tmp_path, capsys):
    out = tmp_path / "out"
    for name, counts in (("a", (1, 1)), ("b", (1, 2))):
        write_images(str(tmp_path / name), *counts)
        assert run_verify(tmp_path / name, out=str(out)) == 0
        assert "in 2 shards checked now, 0 shards before" in _lines(capsys)[-1]


def test_nothing_is_written_without_out(raw):
    before = files_of(raw.parent)
    assert run_verify(raw, decode=True) == run_verify(raw, samples=2) == 0
    assert files_of(raw.parent) == before


def test_out_must_not_be_the_dataset(raw):
    with pytest.raises(UserError, match="holds other work"):
        run_verify(raw, out=str(raw))


def test_a_process_may_verify_twice_at_once(raw, latents):
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(run_verify, [raw, latents] * 4)) == {0}


# --- settings and manifests


def test_settings_are_composed():
    config = compose_config("verify", ["data.url=d", "samples=5", "decode=true", "out=o"])
    assert (config.samples, config.decode, config.out, config.threads) == (5, True, "o", 4)
    assert compose_config("verify", ["data.url=d"]).out is None


def test_nothing_is_no_dataset(tmp_path):
    with pytest.raises(UserError, match="holds no dataset"):
        run_verify(tmp_path)


def test_a_changed_manifest_is_refused(raw):
    manifest = raw / NAME
    content = json.loads(manifest.read_text())
    content["shards"][0]["buckets"] = [4]
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="was changed after it was written"):
        run_verify(raw)
