import numpy as np
import pytest

from conf.encoding import EncodingConfig
from data.image import fit
from data.views import make_view, view_names

CHANCE = np.random.default_rng(0)
IMAGE = CHANCE.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def views(config, image=IMAGE, size=(16, 16), key="a"):
    return [
        make_view(image, size, config, number, key) for number in range(len(view_names(config)))
    ]


def test_the_first_view_is_the_middle_of_the_image():
    for config in (EncodingConfig(), EncodingConfig(flip=True, crops=2)):
        assert np.array_equal(views(config)[0], fit(IMAGE, 16, 16))


def test_views_have_their_names():
    names = view_names(EncodingConfig(flip=True, crops=2))
    assert names == (
        *("center", "center flipped", "crop 0", "crop 0 flipped", "crop 1", "crop 1 flipped"),
    )
    found = dict(zip(names, views(EncodingConfig(flip=True, crops=2)), strict=True))
    for name in ("center", "crop 0", "crop 1"):
        assert np.array_equal(found[f"{name} flipped"], found[name][:, ::-1])


def test_crops_differ_from_each_other_and_by_key_and_seed():
    config = EncodingConfig(crops=3)
    made = views(config)
    other_key, other_seed = views(config, key="b"), views(EncodingConfig(crops=3, crop_seed=10))
    for number in range(1, 4):
        assert not np.array_equal(made[number], other_key[number])
        assert not np.array_equal(made[number], other_seed[number])
    assert len({one.tobytes() for one in made}) == 4
    assert [one.tobytes() for one in made] == [one.tobytes() for one in views(config)]


@pytest.mark.parametrize("size", [(16, 16), (16, 32), (64, 48)])
def test_a_crop_is_a_part_of_the_image_at_its_zoom(size):
    """Of an image whose colours tell where a pixel was."""
    down, right = np.mgrid[0:200, 0:200].astype(np.uint8)
    image = np.stack([down, right, np.zeros_like(down)], axis=2)
    for zoom in (1.0, 1.5):
        config = EncodingConfig(crops=1, crop_zoom=zoom)
        crop = make_view(image, size, config, 1, "key").astype(int)
        step = 200 / (max(size) * zoom)  # pixels of the image to one of the crop
        assert crop.shape == (*size, 3)
        for axis in (0, 1):
            span = np.ptp(crop[..., axis]) + step
            assert abs(span - size[axis] * step) < 2 * step + 2


def test_an_image_that_has_its_size_already_is_still_cropped():
    image = IMAGE[:16, :16]
    crop = make_view(image, (16, 16), EncodingConfig(crops=1, crop_zoom=1.25), 1, "key")
    assert not np.array_equal(crop, image)
