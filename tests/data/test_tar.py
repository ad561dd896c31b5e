import io
import random
import tarfile
import zlib

import pytest
from webdataset import tariterators

from data.sample import RawSample
from data.tar import CorruptShard, index_tar, split_name, write_tar
from tests.helpers.datasets import flip_bit, latent_samples, raw_samples
from tests.helpers.tars import indexed_member

MEMBERS = ("png", "txt", "json")
SAMPLES = raw_samples(3)
TAR = write_tar(SAMPLES)


def _tar(*names, format=tarfile.GNU_FORMAT):
    """A tar of plain files, each with its name as its content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name in names:
            _add(archive, name, name.encode())
    return buffer.getvalue()


def _add(archive, name, content=b"", **fields):
    item = tarfile.TarInfo(name)
    item.size = len(content)
    for field, value in fields.items():
        setattr(item, field, value)
    archive.addfile(item, io.BytesIO(content))


def _read_all(content, index, members=MEMBERS):
    """Every sample as the index finds it in the tar."""
    samples = []
    for row in index:
        read = {ext: indexed_member(content, row, i) for i, ext in enumerate(members)}
        there = {extension: part for extension, part in read.items() if part is not None}
        samples.append(RawSample(row["key"].decode(), there))
    return samples


# --- writing and indexing


def test_the_same_samples_make_the_same_bytes():
    assert write_tar(raw_samples(3)) == TAR
    with tarfile.open(fileobj=io.BytesIO(TAR)) as archive:
        assert {(item.mtime, item.uname, item.mode) for item in archive} == {(0, "ldm", 0o444)}


@pytest.mark.parametrize(
    ("samples", "members"),
    [(SAMPLES, MEMBERS), (latent_samples(3), ("moments.npy", "text.npy", "json"))],
)
def test_the_index_finds_every_member(samples, members):
    content = write_tar(samples)
    index = index_tar(content, members, "test")
    assert _read_all(content, index, members) == samples
    for row, sample in zip(index, samples, strict=True):
        for column, extension in enumerate(members):
            part = sample.members[extension]
            start, length = int(row["offset"][column]), int(row["length"][column])
            assert content[start : start + length] == part
            assert row["crc32"][column] == zlib.crc32(part)


def test_members_that_are_missing_or_empty_stay_so():
    samples = [RawSample("a", {"txt": b""}), RawSample("b", {"png": b"1", "json": b"2"})]
    content = write_tar(samples)
    index = index_tar(content, MEMBERS, "test")
    assert index["length"].tolist() == [[-1, 0, -1], [1, -1, 1]]
    assert _read_all(content, index) == samples


def test_members_that_are_not_asked_for_are_left_out():
    index = index_tar(TAR, ("txt",), "test")
    assert [row["key"].decode() for row in index] == ["s0", "s1", "s2"]
    assert index["length"].shape == (3, 1)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_of_other_programs_are_indexed(format):
    long = "folder/" * 12 + "k" * 50
    content = _tar(f"{long}.png", f"{long}.txt", "b.png", format=format)
    index = index_tar(content, MEMBERS, "test")
    first = {"png": f"{long}.png".encode(), "txt": f"{long}.txt".encode()}
    assert _read_all(content, index) == [RawSample(long, first), RawSample("b", {"png": b"b.png"})]


def test_keys_need_not_be_ascii():
    content = _tar("héllo/日.png")
    assert index_tar(content, MEMBERS, "test")["key"][0].decode() == "héllo/日"


def test_an_empty_shard_is_whole():
    assert len(index_tar(write_tar([]), MEMBERS, "test")) == 0


@pytest.mark.parametrize(
    "name", ["a.png", "a.moments.npy", "x/y.z/a.b.c", "./a.txt", "x/a..png", "a-b_c~2e~.jpg"]
)
def test_names_are_split_as_webdataset_does(name):
    assert split_name(name) == tariterators.base_plus_ext(name)


# --- what stock WebDataset writes and reads


def test_bytes_are_those_of_webdatasets_writer():
    from webdataset import TarWriter

    samples = [*raw_samples(3), RawSample("k" * 300, {"txt": b"a name too long for one block"})]
    buffer = io.BytesIO()
    with TarWriter(buffer, encoder=False, mtime=0, user="ldm", group="ldm") as writer:
        for sample in samples:
            writer.write({"__key__": sample.key, **sample.members})
    assert write_tar(samples) == buffer.getvalue()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # its own
@pytest.mark.parametrize("samples", [SAMPLES, latent_samples(5)])
def test_webdataset_reads_the_same(tmp_path, samples):
    from webdataset import WebDataset

    (tmp_path / "shard.tar").write_bytes(write_tar(samples))
    read = list(WebDataset(str(tmp_path / "shard.tar"), shardshuffle=False))
    for sample, theirs in zip(samples, read, strict=True):
        assert theirs["__key__"] == sample.key
        assert {k: v for k, v in theirs.items() if not k.startswith("__")} == sample.members


# --- what is refused


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (tarfile.SYMTYPE, {"linkname": "/etc/passwd"}),
        (tarfile.LNKTYPE, {"linkname": "a.png"}),
        (tarfile.DIRTYPE, {}),
        (tarfile.FIFOTYPE, {}),
        (tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}),
        (tarfile.BLKTYPE, {"devmajor": 8}),
    ],
)
def test_only_plain_files_are_taken(kind, fields):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        _add(archive, "a.png", b"1")
        _add(archive, "b.png", type=kind, **fields)
    with pytest.raises(CorruptShard, match=r"^test: 'b.png' is not a plain file$"):
        index_tar(buffer.getvalue(), MEMBERS, "test")


def test_a_sparse_file_is_not_plain():
    header = bytearray(_tar("a.png"))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    with pytest.raises(CorruptShard, match="not a plain file"):
        index_tar(bytes(header), MEMBERS, "test")


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        (("a.png", "a.png"), "'a.png' is cut or comes twice"),
        (("a.png", "b.png", "a.txt"), "key 'a' comes twice"),
        (("a.png", "a.txt", "b.png", "a.png"), "key 'a' comes twice"),
    ],
)
def test_a_key_that_comes_twice_is_refused(names, wrong):
    with pytest.raises(CorruptShard, match=wrong):
        index_tar(_tar(*names), MEMBERS, "test")


def test_a_name_that_is_not_utf8_is_refused():
    content = bytearray(_tar("ab.png"))
    content[0] = 0xE9
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    with pytest.raises(CorruptShard, match="not a whole tar"):
        index_tar(bytes(content), MEMBERS, "test")


@pytest.mark.parametrize(
    "content",
    [b"", b"no tar" * 1000, bytes(100), TAR[512:], TAR + TAR, TAR + b"x", TAR[:1536]],
    ids=["empty", "text", "zeros", "headless", "two", "tail", "cut"],
)
def test_what_is_no_whole_tar_is_refused(content):
    with pytest.raises(CorruptShard, match=r"^test: "):
        index_tar(content, MEMBERS, "test")


def test_a_header_that_was_wiped_is_no_end():
    second = TAR.index(b"s1.")
    for length in (512, 1024, 1536):
        wiped = TAR[:second] + bytes(length) + TAR[second + length :]
        with pytest.raises(CorruptShard):
            index_tar(wiped, MEMBERS, "test")


def test_a_cut_is_found_wherever_it_is():
    index = index_tar(TAR, MEMBERS, "test")
    end = TAR.rstrip(b"\0")
    for length in [*range(0, len(TAR), 512), *range(len(end) - 3, len(end) + 3)]:
        content = TAR[:length]
        if length < len(end):
            with pytest.raises(CorruptShard):
                index_tar(content, MEMBERS, "test")
            with pytest.raises(CorruptShard):
                _read_all(content, index)
        else:  # nothing but zeros behind the last sample is gone
            assert _read_all(content, index) == SAMPLES


def test_a_flipped_bit_never_reaches_the_reader():
    index = index_tar(TAR, MEMBERS, "test")
    chance = random.Random(0)
    for bit in (chance.randrange(8 * len(TAR)) for _ in range(400)):
        content = flip_bit(TAR, bit)
        for row, sample in zip(index, SAMPLES, strict=True):
            for column, extension in enumerate(MEMBERS):
                start, length = int(row["offset"][column]), int(row["length"][column])
                if start <= bit // 8 < start + length:
                    where = rf"^here: bytes {start} to {start + length} are not"
                    with pytest.raises(CorruptShard, match=where):
                        indexed_member(content, row, column)
                else:
                    read = indexed_member(content, row, column)
                    assert read == sample.members[extension]


def test_a_flipped_bit_between_the_samples_changes_no_index():
    """Headers have a checksum: an index is either refused or right."""
    index = index_tar(TAR, MEMBERS, "test")
    starts, lengths = (index[name].ravel().tolist() for name in ("offset", "length"))
    data = [(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    chance = random.Random(1)
    refused = 0
    for bit in (chance.randrange(8 * len(TAR)) for _ in range(400)):
        if any(start <= bit // 8 < end for start, end in data):
            continue
        try:
            assert (index_tar(flip_bit(TAR, bit), MEMBERS, "test") == index).all()
        except CorruptShard:
            refused += 1
    assert refused > 50
