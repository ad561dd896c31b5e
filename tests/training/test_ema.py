import pytest
import torch
from torch import nn

from training.ema import averaged, ema_weight, update_ema


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


def test_averages_stand_in_for_the_weights_and_go_again_bit_for_bit() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[0].weight.data = model[0].weight.data.t().contiguous().t()  # a layout of its own
    ema = [torch.randn_like(parameter) for parameter in model.parameters()]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    places = [parameter.data_ptr() for parameter in model.parameters()]
    kept = [average.clone() for average in ema]
    model.train()
    with pytest.raises(KeyError), averaged(model, ema):
        assert not model[1].training
        given = torch.randn(5, 3)
        wanted = (given @ kept[0].T + kept[1]) @ kept[2].T + kept[3]
        assert torch.allclose(model(given), wanted, atol=1e-5)
        raise KeyError  # whatever happens inside
    assert model[1].training
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    for parameter, old, average, then in zip(model.parameters(), before, ema, kept, strict=True):
        assert torch.equal(parameter, old)
        assert torch.equal(average, then)
    assert model[0].weight.stride() == (1, 4)
