import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from conf.diffusion import DiffusionConfig
from conf.enums import Prediction, ScheduleKind, TimestepDraw, Weighting
from data.sample import LatentBatch
from data.spec import LatentSpec
from training.diffusion.schedule import build_schedule
from training.step import (
    Condition,
    condition_of_one,
    drop_captions,
    final_latents,
    latent_losses,
    noise_of,
    raw_latents,
    stratified,
)

CHANNELS, SIZE, WIDTH = 3, 4, 5


def spec(shift: tuple[float, ...], scale: tuple[float, ...]) -> LatentSpec:
    """A LatentSpec of which only the scaling matters here."""
    return LatentSpec(
        channels=len(shift),
        size=SIZE,
        downsampling=8,
        dtype="float32",
        autoencoder="none",
        mean=shift,
        std=tuple(1 / s for s in scale),
        shift=shift,
        scale=scale,
    )


def batch(places: list[int]) -> LatentBatch:
    """A micro-batch whose content depends on the places alone."""
    rng = [np.random.default_rng(place) for place in places]
    lengths = [2 + place % 3 for place in places]
    text = np.zeros((len(places), max(lengths), WIDTH), np.float32)
    mask = np.zeros(text.shape[:2], np.bool_)
    for i, (generator, length) in enumerate(zip(rng, lengths, strict=True)):
        text[i, :length] = generator.standard_normal((length, WIDTH))
        mask[i, :length] = True
    moments = np.stack([g.standard_normal((2 * CHANNELS, SIZE, SIZE)) for g in rng])
    return LatentBatch(np.array(places), moments.astype(np.float32), text, mask)


class MaskedMeanModel(nn.Module):
    """A small denoiser that uses its condition and must respect the mask."""

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        mean = (text * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return (
            noisy * 0.3 + mean.mean(1)[:, None, None, None] + timesteps[:, None, None, None] / 1e3
        )


class NotingModel(MaskedMeanModel):
    """Keeps what it was given."""

    noisy: Tensor
    times: Tensor

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        self.noisy, self.times = noisy, timesteps
        return super().forward(noisy, timesteps, text, mask)


def losses(
    places: list[int], dropout: float = 0.5, model: nn.Module | None = None, **settings: Any
) -> Tensor:
    config = DiffusionConfig(caption_dropout=dropout, **settings)
    empty = condition_of_one(torch.full((4, WIDTH), 2.0))
    found = latent_losses(
        model or MaskedMeanModel(),
        batch(places),
        config,
        build_schedule(config),
        spec((0.1, 0.2, 0.3), (1.0, 2.0, 3.0)),
        empty,
        seed=5,
        batch_size=8,
    )
    return found["loss"]


def test_a_samples_loss_does_not_depend_on_its_micro_batch() -> None:
    together = losses(list(range(16)))
    alone = torch.cat([losses([place]) for place in range(16)])
    assert torch.allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": ScheduleKind.flow, "prediction": Prediction.flow},
        {"schedule": ScheduleKind.ve, "weighting": Weighting.edm},
        {"continuous": True, "timestep_draw": TimestepDraw.logit_normal, "stratified": False},
        {"offset_noise": 0.1, "input_perturbation": 0.1, "weighting": Weighting.min_snr},
    ],
    ids=str,
)
def test_nor_does_it_with_other_objectives(settings: dict[str, Any]) -> None:
    together = losses(list(range(16)), **settings)
    assert together.isfinite().all()
    alone = torch.cat([losses([place], **settings) for place in range(16)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


def test_the_loss_is_weighted_by_its_noise() -> None:
    plain, weighted = NotingModel(), NotingModel()
    before = losses(list(range(8)), model=plain)
    after = losses(list(range(8)), model=weighted, weighting=Weighting.min_snr)
    assert torch.equal(plain.noisy, weighted.noisy)
    snr = build_schedule(DiffusionConfig()).log_snr[plain.times].exp()
    torch.testing.assert_close(after, before * snr.clamp(max=5.0) / snr, rtol=1e-4, atol=1e-6)


class VaryingModel(NotingModel):
    """Says how much of the larger variance it takes, too: 0.6."""

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        predicted = super().forward(noisy, timesteps, text, mask)
        return torch.cat([predicted, torch.full_like(predicted, 2 * 0.6 - 1)], dim=1)


def test_the_hybrid_loss_is_the_papers_sum() -> None:
    """L_simple + lambda L_vlb, of which a term times T stands for all. Source: Nichol & Dhariwal
    2021, Eq. 16, Eq. 15 for the variance; Ho et al. 2020, Eq. 5 to 7 for the terms.
    """
    places, plain, varying = list(range(64)), NotingModel(), VaryingModel()
    simple = losses(places, dropout=0.0, model=plain)
    hybrid = losses(places, dropout=0.0, model=varying, learned_variance=True)
    times = plain.times
    assert torch.equal(plain.noisy, varying.noisy) and torch.equal(times, varying.times)
    assert times.min() > 0  # whose term is another
    config = DiffusionConfig()
    alphas = build_schedule(config).alphas.double()
    squared, before = ((alphas[i] ** 2)[:, None, None, None] for i in (times, times - 1))
    beta = 1 - squared / before
    beta_tilde = (1 - before) / (1 - squared) * beta

    def mean(epsilon: Tensor) -> Tensor:
        x0 = (plain.noisy - (1 - squared).sqrt() * epsilon) / squared.sqrt()
        of_x0 = before.sqrt() * beta / (1 - squared)
        return of_x0 * x0 + (1 - beta).sqrt() * (1 - before) / (1 - squared) * plain.noisy

    text = batch(places)
    given = (torch.from_numpy(text.text), torch.from_numpy(text.text_mask))
    predicted = MaskedMeanModel()(plain.noisy, times, *given)
    noise = noise_of(config, 5, places, (CHANNELS, SIZE, SIZE))
    variance = (0.6 * beta.log() + 0.4 * beta_tilde.log()).exp()
    true = Normal(mean(noise.double()), beta_tilde.sqrt().expand(noise.shape))
    own = Normal(mean(predicted.double()), variance.sqrt().expand(noise.shape))
    bits = kl_divergence(true, own).flatten(1).mean(1) / math.log(2)
    wanted = 0.001 * config.num_timesteps * bits
    torch.testing.assert_close((hybrid - simple).double(), wanted, rtol=2e-3, atol=1e-5)
    assert wanted.min() > 1e-3


def test_offset_noise_moves_whole_channels_and_perturbation_every_place() -> None:
    places, models = list(range(64)), [NotingModel() for _ in range(3)]
    losses(places, model=models[0])
    losses(places, model=models[1], offset_noise=0.5)
    losses(places, model=models[2], input_perturbation=0.5)
    sigma = build_schedule(DiffusionConfig()).at(models[0].times, 4)[1]
    offset, perturbation = ((one.noisy - models[0].noisy) / sigma for one in models[1:])
    assert offset.std((2, 3)).max() < 1e-2  # of rounding, at little noise
    assert offset.mean((2, 3)).std().item() == pytest.approx(0.5, rel=0.2)
    assert perturbation.std((2, 3)).mean().item() == pytest.approx(0.5, rel=0.1)


def test_the_target_keeps_the_noise_without_its_perturbation() -> None:
    """And has the offset: only the first is invisible to what the denoiser is to answer."""

    class Silent(nn.Module):
        def forward(self, noisy: Tensor, *_: Tensor) -> Tensor:
            return torch.zeros_like(noisy)

    plain = losses(list(range(8)), model=Silent())
    assert torch.equal(losses(list(range(8)), model=Silent(), input_perturbation=0.5), plain)
    assert not torch.equal(losses(list(range(8)), model=Silent(), offset_noise=0.5), plain)


def test_without_strata_times_are_drawn_one_by_one() -> None:
    spread, free = NotingModel(), NotingModel()
    losses(list(range(8)), model=spread)
    losses(list(range(8)), model=free, stratified=False)
    assert torch.equal(spread.times.sort().values // 125, torch.arange(8))
    assert not torch.equal(free.times.sort().values // 125, torch.arange(8))


def test_dropout_of_none_and_all_captions() -> None:
    kept, dropped = losses(list(range(8)), 0.0), losses(list(range(8)), 1.0)
    assert (kept != dropped).all()
    half = losses(list(range(64)), 0.5)
    share = (half == losses(list(range(64)), 1.0)).float().mean()
    assert 0.25 < share < 0.75


def test_final_latents_have_the_specs_moments() -> None:
    torch.manual_seed(0)
    moments = torch.randn(400, 2 * CHANNELS, SIZE, SIZE)
    moments[:, :CHANNELS] = moments[:, :CHANNELS] * 3 + 1
    moments[:, CHANNELS:] = -2.0
    std = (9 + np.exp(-2)) ** 0.5
    final = final_latents(
        moments, torch.randn(400, CHANNELS, SIZE, SIZE), spec((1.0,) * 3, (1 / std,) * 3)
    )
    assert final.mean((0, 2, 3)).abs().max() < 0.05
    assert (final.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_raw_latents_undo_final_latents() -> None:
    scaling = spec((0.1, -2.0, 30.0), (0.5, 2.0, 0.1))
    moments = torch.randn(2, 2 * CHANNELS, SIZE, SIZE)
    final = final_latents(moments, torch.zeros(2, CHANNELS, SIZE, SIZE), scaling)
    assert torch.allclose(raw_latents(final, scaling), moments[:, :CHANNELS], atol=1e-5)


@pytest.mark.parametrize("empty_length", [2, 6])
def test_dropped_captions_become_the_empty_one(empty_length: int) -> None:
    condition = Condition(torch.randn(3, 4, WIDTH), torch.arange(4) < torch.tensor([[4], [2], [3]]))
    empty = condition_of_one(torch.randn(empty_length, WIDTH))
    result = drop_captions(condition, empty, torch.tensor([False, True, False]))
    assert torch.equal(result.text[1][result.mask[1]], empty.text[0])
    assert result.mask[1].sum() == empty_length
    for kept in (0, 2):
        before = condition.text[kept][condition.mask[kept]]
        assert torch.equal(result.text[kept][result.mask[kept]], before)


def test_stratified_draws_fill_a_batch_evenly_for_every_world_size() -> None:
    draws = torch.rand(16, dtype=torch.float64)
    spread = stratified(draws, np.arange(32, 48), 16)
    assert torch.equal((spread * 16).long().sort().values, torch.arange(16))
    halves = [stratified(draws[i : i + 8], np.arange(32 + i, 40 + i), 16) for i in (0, 8)]
    assert torch.equal(torch.cat(halves), spread)


def test_timesteps_cover_all_of_the_schedule() -> None:
    steps = build_schedule(DiffusionConfig()).times_at(torch.linspace(0, 1, 100_001)[:-1].double())
    assert steps.min() == 0
    assert steps.max() == 999
    assert (torch.bincount(steps) - 100).abs().max() <= 1
