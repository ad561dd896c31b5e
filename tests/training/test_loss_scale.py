"""The factor of losses in fp16."""

from training.loss_scale import FIRST, GREATEST, UPDATES_TO_GROW, LossScale


def test_it_halves_after_an_update_that_was_not_finite_down_to_one() -> None:
    scale = LossScale()
    assert scale.factor == FIRST
    factors = []
    for _ in range(20):
        scale = scale.after(applied=False)
        factors.append(scale.factor)
    assert factors[:3] == [FIRST / 2, FIRST / 4, FIRST / 8]
    assert factors[-1] == 1


def test_it_doubles_after_enough_finite_ones_in_a_row() -> None:
    scale = LossScale(1024.0)
    for _ in range(UPDATES_TO_GROW - 1):
        scale = scale.after(applied=True)
    assert scale.factor == 1024
    assert scale.after(applied=False) == LossScale(512.0, 0)
    assert scale.after(applied=True) == LossScale(2048.0, 0)
    assert LossScale(GREATEST, UPDATES_TO_GROW).after(applied=True).factor == GREATEST
