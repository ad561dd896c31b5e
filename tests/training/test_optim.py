import pytest

from conf.enums import Decay
from conf.training import OptimizerConfig
from training.optim import learning_rate


def test_the_warmup_is_linear_and_ends_at_the_peak() -> None:
    config = OptimizerConfig(lr=1.0, warmup_samples=1000)
    assert learning_rate(config, 0, 10**6) == pytest.approx(1 / 1000)
    assert learning_rate(config, 499, 10**6) == pytest.approx(0.5)
    assert learning_rate(config, 5000, 10**6) == 1.0


def test_without_warmup_the_first_step_has_the_peak() -> None:
    assert learning_rate(OptimizerConfig(lr=2.0, warmup_samples=0), 0, 100) == 2.0


def test_the_cosine_is_half_way_in_the_middle_and_zero_at_the_end() -> None:
    config = OptimizerConfig(lr=1.0, warmup_samples=1, decay=Decay.cosine)
    assert learning_rate(config, 0, 1000) == 1.0
    assert learning_rate(config, 500, 1000) == pytest.approx(0.5)
    assert learning_rate(config, 1000, 1000) == pytest.approx(0, abs=1e-12)


def test_the_constant_does_not_know_the_end() -> None:
    config = OptimizerConfig(lr=1.0, warmup_samples=1)
    assert learning_rate(config, 999, 1000) == learning_rate(config, 999, 10**9) == 1.0
