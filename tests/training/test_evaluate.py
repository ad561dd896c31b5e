import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import UserError
from training.evaluate import Estimate, _psnr, describe, estimate, other_captions


def test_independent_images_have_the_usual_standard_error() -> None:
    values = np.random.default_rng(0).standard_normal(500)
    found = estimate(values, [str(i) for i in range(500)])
    assert found.mean == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / np.sqrt(500), rel=1e-3)


def test_copies_of_an_image_are_no_new_evidence() -> None:
    values = np.random.default_rng(0).standard_normal(100)
    groups = [str(i) for i in range(100)]
    once = estimate(values, groups)
    fivefold = estimate(np.repeat(values, 5), list(np.repeat(groups, 5)))
    assert fivefold.mean == pytest.approx(once.mean)
    assert fivefold.error == pytest.approx(once.error)


def test_the_clustered_error_covers_the_truth() -> None:
    """Over many draws of dependent data, the mean lies within two errors about 95% of the time."""
    rng = np.random.default_rng(1)
    groups = list(np.repeat([str(i) for i in range(60)], 5))
    inside = 0
    for _ in range(300):
        values = np.repeat(rng.standard_normal(60), 5) + 0.1 * rng.standard_normal(300)
        found = estimate(values, groups)
        inside += abs(found.mean) < 2 * found.error
    assert 0.91 < inside / 300 < 0.99


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30).filter(lambda g: len(set(g)) > 1))
def test_other_captions_come_from_other_groups(numbers: list[int]) -> None:
    groups = [str(number) for number in numbers]
    captions = [f"{group} {i}" for i, group in enumerate(groups)]
    others = other_captions(captions, groups)
    assert all(other.split()[0] != group for other, group in zip(others, groups, strict=True))
    assert set(others) <= set(captions)


def test_one_group_alone_cannot_be_measured() -> None:
    with pytest.raises(UserError, match="one group"):
        other_captions(["a", "b"], ["x", "x"])


def test_psnr_is_its_formula() -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    restored = images.copy()
    restored[0] += 16
    restored[1, 0, 0, 0] = 48
    expected = [20 * np.log10(255 / 16), 10 * np.log10(255**2 / (48**2 / 48))]
    assert _psnr(images, restored) == pytest.approx(expected)


def test_the_verdict_needs_two_standard_errors() -> None:
    def result(margin: float) -> dict[str, object]:
        plain = {"mean": 1.0, "error": 0.1}
        margins = {name: {"mean": margin, "error": 0.1} for name in ("other", "empty")}
        losses = {name: plain for name in ("right", "other", "empty")}
        return {
            "images": 4,
            "groups": 2,
            "trained_on": 0,
            "psnr": plain,
            "loss": losses,
            "margin": margins,
        }

    assert describe(result(0.21)).startswith("held-out images: 4 in 2 independent groups")
    assert "3 have keys that the run was TRAINED on" in describe({**result(0.21), "trained_on": 3})
    assert "right captions win over other" in describe(result(0.21))
    assert "right captions do NOT win over other" in describe(result(0.19))
    assert "1.0000 ± 0.1000" in describe(result(0.2))
    assert str(Estimate(0.5, 0.25)) == "0.5000 ± 0.2500"
