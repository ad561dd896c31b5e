import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.bucket import bucket_of, make_buckets
from data.manifest import square_side

sizes = st.builds(
    lambda step, steps, aspect: (step * steps, step, aspect),
    st.sampled_from([1, 8, 32, 64]),
    st.integers(1, 16),
    st.floats(1, 6),
)
side = st.integers(1, 20_000)


def test_the_buckets_of_a_known_setting():
    assert make_buckets(512, 64, 2) == (
        (512, 512),
        (448, 576),
        (576, 448),
        (384, 640),
        (640, 384),
    )
    assert len(make_buckets(1024, 64, 4)) == 33


def test_squares_alone_may_have_any_size():
    assert make_buckets(70, 64, 1) == ((70, 70),)


@given(sizes)
def test_buckets_are_what_was_asked_for(settings):
    size, step, max_aspect = settings
    buckets = make_buckets(*settings)
    assert buckets[0] == (size, size) and square_side(buckets) == size
    assert len(set(buckets)) == len(buckets)
    for height, width in buckets:
        assert height % step == width % step == 0 and height * width <= size * size
        assert max(height, width) <= max_aspect * min(height, width)
        longer, shorter = max(height, width), min(height, width)
        # One of the sides cannot grow: the area is within one step of the square's.
        assert size * size - height * width < step * longer
        assert (width, height) in buckets and shorter > 0


@given(sizes)
def test_every_side_that_is_allowed_has_its_bucket(settings):
    size, step, max_aspect = settings
    buckets = make_buckets(*settings)
    for side in range(step, size * size // step + 1, step):
        other = size * size // side // step * step
        if max_aspect > 1 and max(side, other) <= max_aspect * min(side, other):
            assert (side, other) in buckets


@given(sizes, side, side)
def test_an_image_goes_to_the_nearest_aspect(settings, height, width):
    buckets = make_buckets(*settings)
    number = bucket_of(height, width, buckets)
    apart = [abs(math.log(height / width) - math.log(tall / wide)) for tall, wide in buckets]
    assert apart[number] <= min(apart) + 1e-12
    assert all(one > apart[number] - 1e-12 for one in apart[:number])


@given(sizes, side, side)
def test_a_picture_and_the_same_one_on_its_side_go_to_the_same_bucket_on_its_side(
    settings, height, width
):
    buckets = make_buckets(*settings)
    tall, wide = buckets[bucket_of(height, width, buckets)]
    assert buckets[bucket_of(width, height, buckets)] == (wide, tall)


@given(sizes)
def test_an_image_of_a_buckets_size_goes_to_that_aspect(settings):
    for height, width in (buckets := make_buckets(*settings)):
        tall, wide = buckets[bucket_of(height, width, buckets)]
        assert height * wide == width * tall


@pytest.mark.parametrize("size", [(3, 2), (2, 3)])
def test_of_two_as_near_the_first_is_taken(size):
    height, width = size
    assert bucket_of(height * 100, width * 100, ((1, 1), (9, 4), (4, 9))) == 0
