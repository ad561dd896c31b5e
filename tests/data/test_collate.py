import json

import numpy as np
import pytest
from PIL import Image

from conf.errors import RunError, UserError
from data.arrays import load_array
from data.collate import ImageCollator, caption_of, image_of, latent_batch, meta_of
from data.corpus import Corpus
from data.image import BadImage, encode_png, fit
from data.sample import MOMENTS, TEXT, RawSample
from data.stream import open_dataset
from data.tar import CorruptShard
from tests.helpers.datasets import (
    BUCKETS,
    CHANNELS,
    IMAGE_MEMBERS,
    LATENT_SIZE,
    TEXT_WIDTH,
    flip_bit,
    latent_samples,
    raw_samples,
    tiny_image,
    write_bucketed,
    write_dataset,
    write_images,
    write_latent_shards,
    write_latents,
)

WHOLE = ImageCollator(0)


def _corpus(*urls, kind="images", batch_size=4):
    datasets = [open_dataset(str(url), kind) for url in urls]
    return Corpus(datasets, None, seed=3, block_shards=2, batch_size=batch_size)


def _with_bad_images(url, count, *bad):
    """One shard of images, some of them not to be decoded."""
    samples = raw_samples(count)
    for i in bad:
        samples[i] = RawSample(f"s{i}", {**samples[i].members, "png": b"no image"})
    write_dataset(str(url), [samples], IMAGE_MEMBERS)
    return _corpus(url)


def _rows(corpus, places):
    return [row for _, _, row in corpus.locate(places)]


# --- images


def test_image_batches_hold_what_was_written(url):
    write_images(url, 4, 3, 2)
    corpus = _corpus(url)
    first_of_shard = (0, 4, 7)
    for places in (range(0, 4), range(4, 11)):
        batch = WHOLE(corpus, places)
        numbers = [first_of_shard[shard] + row for _, shard, row in corpus.locate(places)]
        assert batch.places.tolist() == list(places)
        assert batch.keys == [f"s{number}" for number in numbers]
        assert batch.captions == [f"caption {number}" for number in numbers]
        assert [meta["number"] for meta in batch.metas] == numbers
        assert np.array_equal(batch.images, [tiny_image(number) for number in numbers])
        assert batch.images.dtype == np.uint8


def test_a_batch_of_a_bucket_has_its_size(tmp_path):
    write_bucketed(str(tmp_path), "0121", "1102", "00")
    corpus = _corpus(tmp_path, batch_size=3)
    sizes = set()
    for start in range(0, 60, 3):
        batch = WHOLE(corpus, range(start, start + 3))
        sizes.add(batch.images.shape[1:3])
        for key, image in zip(batch.keys, batch.images, strict=True):
            assert np.array_equal(image, tiny_image(int(key[1:]), *image.shape[:2]))
    assert sizes == set(BUCKETS)


def test_images_of_other_sizes_are_fitted(tmp_path):
    """As they are in tars that were adopted as they lie."""
    image = tiny_image(0, 30, 50)
    sample = RawSample("a", {"png": encode_png(image), "txt": b"a"})
    write_dataset(str(tmp_path), [[sample]], IMAGE_MEMBERS)
    (read,) = WHOLE(_corpus(tmp_path), range(1)).images
    assert np.array_equal(read, fit(image, 8, 8))


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "webp"])
def test_an_image_may_have_any_of_the_formats(tmp_path, extension):
    Image.new("RGB", (8, 6), (9, 9, 9)).save(tmp_path / f"a.{extension}")
    sample = RawSample("a", {extension: (tmp_path / f"a.{extension}").read_bytes(), "txt": b""})
    assert image_of(sample).shape == (6, 8, 3)


def test_a_sample_without_an_image_is_bad():
    with pytest.raises(BadImage, match="has no image"):
        image_of(RawSample("a", {"txt": b""}))


def test_a_caption_may_come_from_the_json(tmp_path):
    samples = [RawSample("a", {"png": encode_png(tiny_image(0)), "json": b'{"alt": "a cat"}'})]
    write_dataset(str(tmp_path), [samples], IMAGE_MEMBERS)
    dataset = open_dataset(str(tmp_path), "images")
    dataset.manifest.settings["caption_field"] = "alt"
    assert caption_of(dataset.read(0, 0), dataset) == "a cat"


@pytest.mark.parametrize("field", [None, "alt"])
def test_captions_of_others_are_what_resharding_would_make_of_them(tmp_path, field):
    members = {
        "png": encode_png(tiny_image(0)),
        "txt": b"\xef\xbb\xbf a cat\r\n",
        "json": b'{"alt": " a cat\\n"}',
    }
    write_dataset(str(tmp_path), [[RawSample("a", members)]], IMAGE_MEMBERS)
    dataset = open_dataset(str(tmp_path), "images")
    dataset.manifest.settings["caption_field"] = field
    assert caption_of(dataset.read(0, 0), dataset) == "a cat"


def test_a_sample_may_have_no_json():
    assert meta_of(RawSample("a", {})) == {}


# --- images that cannot be decoded


def test_the_next_image_that_is_good_takes_the_place_of_a_bad_one(tmp_path, capsys):
    corpus = _with_bad_images(tmp_path, 8, 2, 3, 7)
    collate = ImageCollator(0.01)
    instead = {2: 4, 3: 4, 7: 0}
    for start in range(0, 16, 4):
        places = range(start, start + 4)
        expected = [f"s{instead.get(row, row)}" for row in _rows(corpus, places)]
        assert collate(corpus, places).keys == expected
    assert set(collate.bad) == {"s2", "s3", "s7"}
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 3 and all("is no PNG, JPEG or WebP" in line for line in told)


def test_the_same_image_takes_the_place_whatever_was_read_before(tmp_path):
    corpus = _with_bad_images(tmp_path, 8, 2, 3, 7)
    whole = ImageCollator(0.01)(corpus, range(16)).keys
    for start in range(16):
        assert ImageCollator(0.01)(corpus, range(start, 16)).keys == whole[start:]


def test_an_image_of_the_same_bucket_takes_the_place(tmp_path):
    write_bucketed(str(tmp_path), "011011")
    dataset = open_dataset(str(tmp_path), "images")
    assert [list(dataset.rows_from(0, row)) for row in (0, 3, 2, 5)] == [
        [0, 3],
        [3, 0],
        [2, 4, 5, 1],
        [5, 1, 2, 4],
    ]


def test_no_image_may_be_bad_unless_told(tmp_path):
    corpus = _with_bad_images(tmp_path, 4, 1)
    with pytest.raises(UserError, match=r"data.max_bad_share=0: 1 of 1,000 .*: s1: is no PNG"):
        ImageCollator(0)(corpus, range(4))


def test_more_bad_images_than_allowed_stop_the_run(tmp_path):
    corpus = _with_bad_images(tmp_path, 4, 1)
    collate = ImageCollator(0.1)
    for epoch in range(100):
        collate(corpus, range(4 * epoch, 4 * epoch + 4))
    with pytest.raises(UserError, match=r"data.max_bad_share=0.1: 101 of 1,000 images"):
        for epoch in range(100, 102):
            collate(corpus, range(4 * epoch, 4 * epoch + 4))


def test_a_shard_without_any_good_image_stops_the_run(tmp_path):
    corpus = _with_bad_images(tmp_path, 3, 0, 1, 2)
    with pytest.raises(RunError, match=r"shards/00000.tar: no image"):
        ImageCollator(1)(corpus, range(1))


def test_bytes_that_changed_are_never_a_bad_image(tmp_path):
    write_images(str(tmp_path), 4)
    entry = open_dataset(str(tmp_path), "images").index(0)[1]
    shard = tmp_path / "shards" / "00000.tar"
    shard.write_bytes(flip_bit(shard.read_bytes(), 8 * int(entry["offset"][0])))
    with pytest.raises(CorruptShard, match=r"s1.png: bytes"):
        ImageCollator(1)(_corpus(tmp_path), range(4))


# --- latents


def test_latent_batches_hold_what_was_written(url):
    write_latents(url, 4, 3)
    corpus = _corpus(url, kind="latents")
    batch = latent_batch(corpus, range(5, 12))
    samples = latent_samples(7)
    numbers = [(0, 4)[shard] + row for _, shard, row in corpus.locate(range(5, 12))]
    assert batch.places.tolist() == list(range(5, 12))
    assert batch.moments.shape == (7, 2 * CHANNELS, LATENT_SIZE, LATENT_SIZE)
    assert batch.moments.dtype == batch.text.dtype == np.float16
    assert batch.text.shape == (7, batch.text_mask.sum(1).max(), TEXT_WIDTH)
    for i, number in enumerate(numbers):
        assert json.loads(samples[number].members["json"])["number"] == number
        assert np.array_equal(batch.moments[i], load_array(samples[number].members[MOMENTS]))
        text = load_array(samples[number].members[TEXT])
        assert np.array_equal(batch.text[i][batch.text_mask[i]], text)
        assert batch.text_mask[i].tolist() == [True] * len(text) + [False] * (
            batch.text.shape[1] - len(text)
        )


def test_a_sample_without_latents_is_refused(tmp_path):
    (sample,) = latent_samples(1)
    only_text = RawSample("s0", {TEXT: sample.members[TEXT]})
    write_latent_shards(str(tmp_path), [[only_text]])
    with pytest.raises(CorruptShard, match=r"00000.tar: s0: has no moments.npy"):
        latent_batch(_corpus(tmp_path, kind="latents"), range(1))
