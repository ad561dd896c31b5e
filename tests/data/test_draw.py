import numpy as np
import pytest

from data.draw import Draw, drawn

PLACES = np.arange(30_000)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_choice_is_drawn_about_as_often(count):
    times = np.bincount(drawn(5, PLACES, Draw.view, count), minlength=count)
    expected = len(PLACES) / count
    # Five standard deviations of a binomial count.
    assert (np.abs(times - expected) <= 5 * np.sqrt(expected)).all()


def test_a_draw_depends_on_seed_place_and_kind_alone():
    whole = drawn(5, PLACES, Draw.view, 4)
    assert np.array_equal(drawn(5, PLACES[100:200], Draw.view, 4), whole[100:200])
    assert np.array_equal(drawn(5, PLACES[::-1], Draw.view, 4), whole[::-1])
    for other in (drawn(6, PLACES, Draw.view, 4), drawn(5, PLACES, Draw.caption, 4)):
        assert 0.2 < (other == whole).mean() < 0.3  # a quarter by chance


def test_each_place_draws_below_its_own_count():
    counts = 1 + PLACES % 5
    found = drawn(0, PLACES, Draw.caption, counts)
    assert (found < counts).all()
    assert all(set(found[counts == count]) == {*range(count)} for count in range(1, 6))


def test_draws_are_pinned():
    """A run that goes on with a newer version has to be given the same views."""
    assert drawn(7, np.arange(12), Draw.view, 5).tolist() == [4, 4, 0, 0, 1, 3, 0, 1, 2, 3, 2, 0]
