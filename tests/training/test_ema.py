import pytest
import torch

from training.ema import ema_weight, update_ema


def test_half_of_the_start_is_left_after_a_half_life() -> None:
    ema = [torch.ones(3)]
    for _ in range(10):
        update_ema(ema, [torch.zeros(3)], ema_weight(10**9, 16, 160))
    assert torch.allclose(ema[0], torch.full((3,), 0.5))


def test_the_half_life_counts_samples_not_steps() -> None:
    two_steps = (1 - ema_weight(10**9, 16, 1000)) ** 2
    assert 1 - ema_weight(10**9, 32, 1000) == pytest.approx(two_steps)


def test_early_averages_forget_the_start() -> None:
    """At s samples the half-life is s / 10, so that fresh weights do not linger."""
    assert ema_weight(1000, 50, 10**9) == pytest.approx(1 - 0.5 ** (50 / 100))
    assert ema_weight(10**12, 50, 1000) == pytest.approx(1 - 0.5 ** (50 / 1000))


def test_the_update_is_in_place_and_equals_its_formula() -> None:
    torch.manual_seed(0)
    ema, weights = [torch.randn(4, 5), torch.randn(2)], [torch.randn(4, 5), torch.randn(2)]
    expected = [0.7 * e + 0.3 * w for e, w in zip(ema, weights, strict=True)]
    places = [tensor.data_ptr() for tensor in ema]
    update_ema(ema, weights, 0.3)
    assert all(torch.allclose(e, x) for e, x in zip(ema, expected, strict=True))
    assert [tensor.data_ptr() for tensor in ema] == places
