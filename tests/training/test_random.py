import numpy as np
import pytest
import torch

from training.random import Purpose, generator, normal, step_seed, uniform


def test_a_draw_depends_on_seed_place_and_purpose_alone() -> None:
    together = normal(3, range(10), Purpose.noise, (2, 4))
    alone = torch.cat([normal(3, [place], Purpose.noise, (2, 4)) for place in range(10)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize(
    ("seed", "place", "purpose"),
    [(4, 7, Purpose.noise), (3, 8, Purpose.noise), (3, 7, Purpose.posterior)],
)
def test_every_part_of_the_key_gives_another_stream(
    seed: int, place: int, purpose: Purpose
) -> None:
    first = normal(3, [7], Purpose.noise, (100,))
    other = normal(seed, [place], purpose, (100,))
    assert not torch.equal(first, other)
    correlation = np.corrcoef(first.numpy().ravel(), other.numpy().ravel())[0, 1]
    assert abs(correlation) < 0.4  # four standard errors of 100 independent pairs


def test_streams_of_neighbouring_places_do_not_overlap() -> None:
    """Philox counts blocks of draws; a place further on must not start inside another's stream."""
    long = {round(float(x), 12) for x in generator(0, 0, Purpose.noise).random(10_000)}
    for place in (1, 2, 1000):
        near = {round(float(x), 12) for x in generator(0, place, Purpose.noise).random(1000)}
        assert not long & near


def test_normal_draws_are_standard() -> None:
    draws = normal(0, range(500), Purpose.noise, (40,))
    assert draws.dtype == torch.float32
    assert draws.mean().abs() < 4 / np.sqrt(20_000)
    assert (draws.var() - 1).abs() < 4 * np.sqrt(2 / 20_000)


def test_uniform_draws_fill_the_unit_interval() -> None:
    draws = uniform(0, range(5000), Purpose.timestep)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.histc(draws, bins=10, min=0, max=1)
    assert (counts - 500).abs().max() < 5 * np.sqrt(500)


def test_the_draws_of_a_place_never_change() -> None:
    """Pinned: a run that is resumed with a newer version must see the noise that it would have."""
    assert uniform(7, [11], Purpose.timestep).item() == 0.8148338467013427


def test_ranks_have_different_seeds_for_dropout() -> None:
    seeds = {step_seed(0, place, rank) for place in range(0, 64, 16) for rank in range(4)}
    assert len(seeds) == 16
