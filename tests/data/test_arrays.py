import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal.isal_zlib import crc32

from data.arrays import dump_array, load_array, pad_arrays, stack_arrays
from data.tar import Column, CorruptShard, Member
from tests.helpers.datasets import flip_bit, pickled_array


def _member(content, crc=None, name="a"):
    """A member as a shard has it, 512 bytes from its start."""
    crc = crc32(content) if crc is None else crc
    return Member(memoryview(content), 512, len(content), crc, name)


def _column(members):
    windows, _, lengths, crcs, _ = map(list, zip(*members, strict=True))
    return Column(windows, [0] * len(members), lengths, crcs, members.__getitem__)


def _members(arrays):
    return [_member(dump_array(array)) for array in arrays]


def _random(*shape, dtype=np.float16):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 4))
def test_padding_keeps_every_token_and_marks_it(lengths, width):
    texts = [_random(length, width) for length in lengths]
    padded, mask = pad_arrays(_column(_members(texts)))
    assert padded.shape == (len(texts), max(lengths), width)
    assert padded.dtype == np.float16 and mask.dtype == np.bool_
    assert mask.sum(1).tolist() == lengths
    assert not padded[~mask].any()
    assert np.array_equal(padded[mask], np.concatenate(texts))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 5, 4), (2, 1, 3, 2)])
def test_arrays_are_stacked_as_they_lie(dtype, shape):
    arrays = [_random(*shape, dtype=dtype) + i for i in range(5)]
    stacked = stack_arrays(_column(_members(arrays)))
    assert np.array_equal(stacked, np.stack(arrays)) and stacked.dtype == dtype
    assert stacked.flags.writeable


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_arrays_read_back(dtype):
    array = np.arange(6, dtype=dtype).reshape(2, 3)
    read = load_array(dump_array(array))
    assert np.array_equal(read, array) and read.dtype == dtype
    assert dump_array(array) == dump_array(array.copy())


def test_every_flipped_bit_is_found():
    arrays = [_random(2, 3), _random(2, 3) + 1]
    whole = dump_array(arrays[1])
    for bit in range(8 * len(whole)):
        members = [*_members(arrays[:1]), _member(flip_bit(whole, bit), crc32(whole), "this one")]
        for read in (stack_arrays, pad_arrays):
            with pytest.raises(CorruptShard, match=r"^this one: bytes 512 to 652 are not those"):
                read(_column(members))


@pytest.mark.parametrize("read", [stack_arrays, pad_arrays])
def test_an_array_that_is_cut_is_found(read):
    whole = dump_array(_random(2, 3))
    for length in range(len(whole)):
        content = memoryview(whole)[:length]
        with pytest.raises(CorruptShard, match="are not those of the index"):
            read(_column([Member(content, 512, len(whole), crc32(whole), "a")]))


def _saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("read", [stack_arrays, pad_arrays])
@pytest.mark.parametrize(
    "content",
    [
        pickled_array(),
        b"",
        b"no array",
        b"\x93NUMPY\x01\x00\xff\xff" + b" " * 200,
        _saved(np.ones((2, 3))),
        _saved(np.ones((2, 3), dtype=np.int16)),
        _saved(np.asfortranarray(np.ones((2, 3), dtype=np.float16))),
        _saved(np.ones((2, 3), dtype=">f2")),
        _saved(np.ones((2, 3), dtype=np.float16)) + b"more",
        _saved(np.ones((2, 3), dtype=np.float16)).replace(b"(2, 3)", b"(9, 9)"),
    ],
)
def test_what_is_pinned_and_no_array_of_ours_is_refused(read, content):
    with pytest.raises(CorruptShard, match=r"^a: is no array as this version"):
        read(_column([_member(content)]))


@pytest.mark.parametrize("odd", [_random(2, 4), _random(2, 3, dtype=np.float32), _random(1, 2, 3)])
def test_arrays_that_do_not_go_together_are_refused(odd):
    members = [*_members([_random(2, 3)] * 3), _member(dump_array(odd), name="odd one")]
    for read in (stack_arrays, pad_arrays):
        with pytest.raises(CorruptShard, match=r"^odd one: is .*, others are float16 \(2, 3\)"):
            read(_column(members))


def test_texts_have_two_axes():
    with pytest.raises(CorruptShard, match=r"^a: is float16 \(3,\)"):
        pad_arrays(_column(_members([_random(3), _random(3)])))


def test_nothing_is_unpickled():
    with pytest.raises(ValueError, match="pickled objects"):
        load_array(pickled_array())
    with pytest.raises(ValueError, match="allow_pickle=False"):
        dump_array(np.array([None], dtype=object))
