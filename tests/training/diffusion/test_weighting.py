"""Weights of the loss, each against its paper's formula, and the same for any prediction."""

import pytest
import torch
from diffusers.training_utils import compute_snr

from conf.diffusion import DiffusionConfig
from conf.enums import Prediction, ScheduleKind, TimestepDraw, Weighting
from training.diffusion.draws import drawn_times
from training.diffusion.prediction import to_x0_and_epsilon
from training.diffusion.schedule import build_schedule
from training.diffusion.weighting import loss_weights

TIMESTEPS = torch.tensor([0, 10, 200, 500, 999])
SCHEDULE = build_schedule(DiffusionConfig())
ALPHA, SIGMA = (one.double() for one in SCHEDULE.at(TIMESTEPS, 1))
SNR = (ALPHA / SIGMA) ** 2


def weights(weighting, prediction, **settings):
    config = DiffusionConfig(
        weighting=Weighting(weighting), prediction=Prediction(prediction), **settings
    )
    return loss_weights(config, *SCHEDULE.at(TIMESTEPS, 1))


def assert_close(got, wanted):
    torch.testing.assert_close(got, wanted.float(), rtol=1e-5, atol=1e-8)


def test_uniform_counts_every_error_the_same():
    for prediction in Prediction:
        assert weights("uniform", prediction).tolist() == [1.0] * len(TIMESTEPS)


def test_min_snr_is_that_of_hang_et_al():
    gamma = 5.0
    least = SNR.clamp(max=gamma)
    assert_close(weights("min_snr", "x0", snr_gamma=gamma), least)
    assert_close(weights("min_snr", "epsilon", snr_gamma=gamma), least / SNR)
    assert_close(weights("min_snr", "velocity", snr_gamma=gamma), least / (SNR + 1))


def test_min_snr_agrees_with_diffusers_snr():
    class Scheduler:
        alphas_cumprod = SCHEDULE.alphas.double() ** 2

    theirs = compute_snr(Scheduler, TIMESTEPS)
    got = weights("min_snr", "epsilon")  # from alpha and sigma in float32
    torch.testing.assert_close(got, (theirs.clamp(max=5.0) / theirs).float(), rtol=1e-4, atol=0)


def test_soft_min_snr_joins_its_two_sides():
    got = weights("soft_min_snr", "x0", snr_gamma=4.0)
    assert_close(got, 1 / (1 / SNR + 1 / 4.0))
    assert (got < weights("min_snr", "x0", snr_gamma=4.0)).all()


def test_p2_is_that_of_choi_et_al():
    assert_close(weights("p2", "epsilon", p2_gamma=0.5, p2_k=2.0), (2.0 + SNR) ** -0.5)


def test_edm_is_that_of_karras_et_al():
    sigma, data = SIGMA / ALPHA, 0.5
    expected = (sigma**2 + data**2) / (sigma * data) ** 2
    assert_close(weights("edm", "x0", sigma_data=data), expected)
    # With unit variance the effective weight of their F, which is a velocity, is uniform.
    assert_close(weights("edm", "velocity", sigma_data=1.0), torch.ones(len(TIMESTEPS)))


def test_sigmoid_is_that_of_kingma_and_gao():
    expected = 1 / (1 + torch.exp(SNR.log() + 2.0))
    assert_close(weights("sigmoid", "epsilon", sigmoid_bias=-2.0), expected)


@pytest.mark.parametrize("kind", ["scaled_linear", "flow"])
@pytest.mark.parametrize("weighting", [one for one in Weighting if one is not Weighting.uniform])
def test_the_same_error_counts_the_same_whatever_is_predicted(weighting, kind):
    schedule = build_schedule(DiffusionConfig(schedule=ScheduleKind(kind)))
    times = TIMESTEPS[:-1].float() + 1 if kind == "flow" else TIMESTEPS[:-1]
    alpha, sigma = (one.double() for one in schedule.at(times, 1))
    noisy, wrong = torch.randn(4, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    losses = []
    for prediction in Prediction:
        config = DiffusionConfig(weighting=weighting, prediction=prediction)
        output = torch.zeros(4, dtype=torch.float64)
        before, _ = to_x0_and_epsilon(prediction, output, noisy, alpha, sigma)
        after, _ = to_x0_and_epsilon(prediction, output + wrong, noisy, alpha, sigma)
        of_output = loss_weights(config, alpha, sigma) * wrong**2
        losses.append(of_output / (after - before).square())
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("weighting", list(Weighting))
@pytest.mark.parametrize("prediction", ["x0", "velocity", "flow"])
def test_weights_are_finite_without_noise_and_without_signal(weighting, prediction):
    config = DiffusionConfig(weighting=weighting, prediction=Prediction(prediction))
    ends = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    got = loss_weights(config, *ends)
    assert got.isfinite().all() and (got >= 0).all()


def test_logit_normal_draws_have_its_median_and_quantiles():
    config = DiffusionConfig(
        timestep_draw=TimestepDraw.logit_normal, logit_mean=-0.5, logit_std=2.0
    )
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    logits = drawn_times(config, uniform).logit()
    assert logits.mean().item() == pytest.approx(-0.5, abs=1e-3)
    assert logits.std().item() == pytest.approx(2.0, rel=1e-2)
    assert (logits.diff() > 0).all()  # so draws that are spread evenly stay so


def test_drawn_times_stay_below_the_end():
    config = DiffusionConfig(timestep_draw=TimestepDraw.logit_normal, logit_std=20.0)
    drawn = drawn_times(config, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64))
    assert (drawn >= 0).all() and (drawn < 1).all()
