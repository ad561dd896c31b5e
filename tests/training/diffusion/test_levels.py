"""Continuous schedules, shifts and the end without signal, each against its paper's formula."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from conf.diffusion import DiffusionConfig
from conf.enums import ScheduleKind
from training.diffusion.schedule import add_noise, build_schedule

T = 1000
TIMES = torch.tensor([0.5, 100.0, 500.0, 900.0, 999.9])


def levels(**settings):
    schedule = build_schedule(DiffusionConfig(**settings))
    alpha, sigma = schedule.at(TIMES, 1)
    return alpha.double(), sigma.double()


def test_linear_in_continuous_time_is_that_of_song_et_al():
    settings = {"beta_start": 1e-4, "beta_end": 0.02}
    alpha, sigma = levels(schedule=ScheduleKind.linear, continuous=True, **settings)
    t, low, high = TIMES.double() / T, 0.1, 20.0
    expected = torch.exp(-(t**2) * (high - low) / 4 - t * low / 2)
    torch.testing.assert_close(alpha, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(sigma**2, 1 - expected**2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
def test_continuous_time_is_the_limit_of_many_timesteps(kind):
    many = 100_000
    betas = {"beta_start": 0.00085 * T / many, "beta_end": 0.012 * T / many}
    discrete = build_schedule(
        DiffusionConfig(schedule=ScheduleKind(kind), num_timesteps=many, **betas)
    )
    continuous = build_schedule(DiffusionConfig(schedule=ScheduleKind(kind), continuous=True))
    rows = torch.tensor([1_000, 20_000, 50_000, 90_000])
    alpha, _ = continuous.at((rows + 1).float() * T / many, 1)
    torch.testing.assert_close(alpha, discrete.alphas[rows], rtol=1e-4, atol=1e-6)


def test_flow_is_a_straight_line_in_any_time():
    alpha, sigma = levels(schedule=ScheduleKind.flow)
    t = TIMES.double() / T
    torch.testing.assert_close(sigma, t, rtol=1e-6, atol=0)
    torch.testing.assert_close(alpha, 1 - t, rtol=1e-3, atol=0)
    schedule = build_schedule(DiffusionConfig(schedule=ScheduleKind.flow))
    latents, noise = torch.randn(2, 5, 3)
    noisy = add_noise(schedule, latents, noise, TIMES)
    middle = 0.5 * latents[2] + 0.5 * noise[2]
    torch.testing.assert_close(noisy[2], middle)


def test_exploding_noise_grows_geometrically_and_is_seen_at_unit_variance():
    alpha, sigma = levels(schedule=ScheduleKind.ve, sigma_min=0.01, sigma_max=50.0)
    expected = 0.01 * (50.0 / 0.01) ** (TIMES.double() / T)
    torch.testing.assert_close(sigma / alpha, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(alpha, 1 / (1 + expected**2).sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_a_shifted_flow_is_that_of_esser_et_al(shift):
    _, sigma = levels(schedule=ScheduleKind.flow, resolution_shift=shift)
    t = TIMES.double() / T
    torch.testing.assert_close(sigma, shift * t / (1 + (shift - 1) * t), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "settings",
    [{}, {"schedule": ScheduleKind.cosine}, {"continuous": True}, {"schedule": ScheduleKind.ve}],
    ids=str,
)
def test_a_shift_lowers_log_snr_by_the_same_everywhere(settings):
    plain, moved = (
        build_schedule(DiffusionConfig(**settings, resolution_shift=shift)).log_snr
        for shift in (1.0, 2.0)
    )
    torch.testing.assert_close(
        plain - moved, torch.full_like(plain, 2 * math.log(2)), atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_zero_terminal_snr_is_that_of_diffusers(kind):
    config = DiffusionConfig(schedule=ScheduleKind(kind), zero_terminal_snr=True)
    ours = build_schedule(config)
    theirs = DDPMScheduler(
        beta_schedule=kind, beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    )
    torch.testing.assert_close(ours.alphas**2, theirs.alphas_cumprod, atol=1e-5, rtol=1e-4)
    assert ours.alphas[-1] == 0
    assert ours.sigmas[-1] == 1
    assert ours.alphas[0] == build_schedule(DiffusionConfig(schedule=config.schedule)).alphas[0]


def test_times_are_whole_where_the_schedule_is_and_between_where_it_is_not():
    draws = torch.tensor([0.0, 0.12345678, 1 - 2.0**-53], dtype=torch.float64)
    whole = build_schedule(DiffusionConfig()).times_at(draws)
    assert whole.tolist() == [0, 123, 999]
    between = build_schedule(DiffusionConfig(continuous=True)).times_at(draws)
    assert between.dtype == torch.float32
    assert between[1].item() == pytest.approx(123.45678)
