import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.image import covering, cut, decode_image, middle
from data.manifest import NAME
from data.progress import SUMMARY
from data.reshard import random_corner
from data.sample import IMAGE_EXTENSIONS
from data.stream import open_dataset
from tests.helpers.datasets import files_of, run_shard

# Height and width; the buckets for size=32, step=8 and max_aspect=2 are 32x32, 24x40 and 40x24.
SHAPES = [(64, 64), (48, 80), (80, 48), (30, 200), (40, 41), (16, 8)]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, (height, width) in enumerate(SHAPES):
        Image.fromarray(_gradient(height, width)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return ("source=folder", f"source.path={folder}", "size=32")


def _gradient(height, width):
    """Smooth in every direction, and another colour at every place."""
    down, right = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return (255 * np.stack([down, right, (down + right) / 2], -1)).astype(np.uint8)


def _samples(out):
    dataset = open_dataset(str(out), "images")
    for number, shard in enumerate(dataset.manifest.shards):
        for row in range(shard.samples):
            sample = dataset.read(number, row)
            (extension,) = set(sample.members) & set(IMAGE_EXTENSIONS)
            bucket = int(dataset.index(number)[row]["bucket"])
            yield sample, extension, json.loads(sample.members["json"]), bucket


# --- buckets


def test_an_image_comes_into_its_bucket(pictures, tmp_path):
    manifest = run_shard(tmp_path / "out", *pictures, "buckets.max_aspect=2", "buckets.step=8")
    assert manifest.buckets == ((32, 32), (24, 40), (40, 24))
    buckets = []
    for (sample, extension, meta, bucket), size in zip(
        _samples(tmp_path / "out"), SHAPES, strict=True
    ):
        assert decode_image(sample.members[extension]).shape[:2] == manifest.buckets[bucket]
        assert meta["original_size"] == list(size)
        buckets.append(bucket)
    assert buckets == [0, 1, 2, 1, 0, 2]
    assert [shard.buckets for shard in manifest.shards] == [(1, 2, 1), (1, 0, 1)]


def test_squares_are_the_default(pictures, tmp_path):
    assert run_shard(tmp_path / "out", *pictures).buckets == ((32, 32),)


# --- crops


@pytest.mark.parametrize("crop", ["center", "random"])
def test_a_crop_is_what_the_json_says_of_it(pictures, tmp_path, crop):
    run_shard(tmp_path / "out", *pictures, f"crop={crop}")
    for (sample, extension, meta, _), (height, width) in zip(
        _samples(tmp_path / "out"), SHAPES, strict=True
    ):
        image, corner = decode_image(sample.members[extension]), tuple(meta["crop"])
        assert np.array_equal(image, cut(_gradient(height, width), (32, 32), corner))
        if crop == "center":
            assert corner == middle(covering((height, width), (32, 32)), (32, 32))


def test_random_crops_are_of_the_seed_and_the_key_alone(pictures, tmp_path):
    for name, settings in {
        "a": ["seed=1"],
        "b": ["seed=1", "shard_samples=2", "processes=2"],
        "c": ["seed=2"],
    }.items():
        run_shard(tmp_path / name, *pictures, "crop=random", *settings)
    crops = {
        name: {sample.key: meta["crop"] for sample, _, meta, _ in _samples(tmp_path / name)}
        for name in "abc"
    }
    assert crops["a"] == crops["b"] != crops["c"]


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 9), st.text(max_size=5))
def test_a_random_crop_lies_in_the_image(down, right, seed, key):
    top, left = random_corner((32 + down, 32 + right), (32, 32), seed, key)
    assert 0 <= top <= down and 0 <= left <= right


def test_random_crops_are_spread_evenly():
    corners = np.array([random_corner((40, 36), (32, 32), 0, str(i)) for i in range(9000)])
    for column, places in ((0, 9), (1, 5)):
        counts = np.bincount(corners[:, column], minlength=places)
        assert len(counts) == places
        assert np.abs(counts - 9000 / places).max() < 5 * np.sqrt(9000 / places)
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.06


def test_the_crops_drawn_never_change():
    assert [random_corner((100, 70), (32, 32), 5, str(i)) for i in range(3)] == [
        (11, 1),
        (66, 26),
        (30, 0),
    ]


# --- formats


@pytest.mark.parametrize(
    ("settings", "extension", "encoder", "most"),
    [
        (["format=png"], "png", "PNG", 0),
        (["format=jpeg"], "jpg", "JPEG", 12),
        (["format=webp"], "webp", "WEBP", 24),
        (["format=webp", "quality=100"], "webp", "WEBP", 0),
    ],
)
def test_images_are_stored_in_the_format_asked_for(
    pictures, tmp_path, settings, extension, encoder, most
):
    manifest = run_shard(tmp_path / "out", *pictures, *settings)
    assert manifest.members == (extension, "txt", "json")
    for (sample, found, meta, _), size in zip(_samples(tmp_path / "out"), SHAPES, strict=True):
        content = sample.members[extension]
        assert found == extension and Image.open(io.BytesIO(content)).format == encoder
        wanted = cut(_gradient(*size), (32, 32), tuple(meta["crop"])).astype(int)
        assert np.abs(decode_image(content) - wanted).max() <= most


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_bytes_are_the_same_for_every_number_of_processes(pictures, tmp_path, format):
    settings = (*pictures, f"format={format}", "shard_samples=2")
    made = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        run_shard(out, *settings, f"processes={processes}")
        made.append({name: file for name, file in files_of(out).items() if name != SUMMARY})
    assert made[0] == made[1] and NAME in made[0]


def test_quality_decides_the_size(pictures, tmp_path):
    sizes = {}
    for quality in (30, 95):
        run_shard(tmp_path / str(quality), *pictures, "format=jpeg", f"quality={quality}")
        sizes[quality] = sum(len(s.members["jpg"]) for s, *_ in _samples(tmp_path / str(quality)))
    run_shard(tmp_path / "usual", *pictures, "format=jpeg")
    usual = sum(len(sample.members["jpg"]) for sample, *_ in _samples(tmp_path / "usual"))
    assert sizes[30] < sizes[95] == usual


def test_a_jpeg_keeps_its_colours_at_full_resolution(tmp_path):
    """Stripes one pixel wide, of one brightness: at half the resolution they would be gray."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    stripes = np.zeros((32, 32, 3), dtype=np.uint8)
    stripes[:, ::2], stripes[:, 1::2] = (200, 60, 60), (20, 145, 60)
    Image.fromarray(stripes).save(folder / "a.png")
    (folder / "a.txt").write_text("stripes")
    run_shard(tmp_path / "out", "source=folder", f"source.path={folder}", "size=32", "format=jpeg")
    ((sample, *_),) = _samples(tmp_path / "out")
    apart = np.abs(decode_image(sample.members["jpg"]).astype(int) - stripes)
    assert apart.mean() < 12


# --- what is smaller than its size


def test_images_that_are_enlarged_are_counted(pictures, tmp_path, capsys):
    run_shard(tmp_path / "out", *pictures)
    assert "2 images were smaller than their size and were enlarged" in capsys.readouterr().out
    (part,) = json.loads((tmp_path / "out" / SUMMARY).read_bytes())
    assert part["enlarged"] == 2
