import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.diffusion import DiffusionConfig
from conf.enums import ScheduleKind
from conf.errors import UserError
from training.diffusion.schedule import add_noise, build_schedule

DIFFUSERS = {
    ScheduleKind.linear: "linear",
    ScheduleKind.scaled_linear: "scaled_linear",
    ScheduleKind.cosine: "squaredcos_cap_v2",
}
KINDS = list(DIFFUSERS)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_match_diffusers(kind):
    ours = build_schedule(DiffusionConfig(schedule=kind))
    theirs = DDPMScheduler(
        beta_schedule=DIFFUSERS[kind], beta_start=0.00085, beta_end=0.012
    ).alphas_cumprod
    torch.testing.assert_close(ours.alphas**2, theirs, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(ours.sigmas**2, 1 - theirs, atol=1e-6, rtol=1e-4)


def betas_of(schedule):
    squared = schedule.alphas.double() ** 2
    return 1 - squared / torch.cat([torch.ones(1), squared[:-1]])


def test_linear_betas_rise_evenly():
    config = DiffusionConfig(
        schedule=ScheduleKind.linear, num_timesteps=5, beta_start=0.1, beta_end=0.5
    )
    expected = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    torch.testing.assert_close(betas_of(build_schedule(config)), expected, atol=1e-6, rtol=0)


def test_roots_of_scaled_linear_betas_rise_evenly():
    config = DiffusionConfig(
        schedule=ScheduleKind.scaled_linear, num_timesteps=3, beta_start=0.01, beta_end=0.25
    )
    expected = torch.tensor([0.01, 0.09, 0.25], dtype=torch.float64)
    torch.testing.assert_close(betas_of(build_schedule(config)), expected, atol=1e-6, rtol=0)


def test_cosine_alpha_is_the_cosine_until_its_last_beta_is_clipped():
    num = 100
    schedule = build_schedule(DiffusionConfig(schedule=ScheduleKind.cosine, num_timesteps=num))
    angles = [((t + 1) / num + 0.008) / 1.008 * math.pi / 2 for t in range(num)]
    expected = torch.tensor([math.cos(angle) for angle in angles]) / math.cos(
        0.008 / 1.008 * math.pi / 2
    )
    torch.testing.assert_close(schedule.alphas[:-1], expected[:-1], atol=1e-6, rtol=1e-5)
    assert betas_of(schedule)[-1].item() == pytest.approx(0.999, abs=1e-6)


@given(
    kind=st.sampled_from(KINDS),
    num=st.integers(1, 1500),
    beta_start=st.floats(1e-20, 0.01),
    rise=st.floats(1, 1e3),
)
@settings(max_examples=50, deadline=None)
def test_every_schedule_is_variance_preserving_and_falls(kind, num, beta_start, rise):
    beta_end = min(beta_start * rise, 0.05)
    schedule = build_schedule(
        DiffusionConfig(schedule=kind, num_timesteps=num, beta_start=beta_start, beta_end=beta_end)
    )
    alphas, sigmas = schedule.alphas, schedule.sigmas
    assert alphas.dtype == sigmas.dtype == torch.float32
    assert alphas.shape == sigmas.shape == (num,)
    assert len(schedule.alphas) == num
    total = alphas.double() ** 2 + sigmas.double() ** 2
    torch.testing.assert_close(total, torch.ones_like(total), atol=3e-7, rtol=0)
    assert (alphas > 0).all() and (alphas <= 1).all() and (sigmas > 0).all()
    assert (alphas.diff() <= 0).all() and (sigmas.diff() >= 0).all()
    assert (schedule.log_snr.diff() <= 1e-5).all()
    assert schedule.log_snr.isfinite().all()


def test_the_first_sigma_keeps_its_precision():
    config = DiffusionConfig(schedule=ScheduleKind.linear, beta_start=1e-12, beta_end=0.01)
    assert build_schedule(config).sigmas[0].item() == pytest.approx(1e-6, rel=1e-6)


def test_log_snr_is_that_of_power():
    config = DiffusionConfig(
        schedule=ScheduleKind.linear, num_timesteps=1, beta_start=0.2, beta_end=0.2
    )
    assert build_schedule(config).log_snr.tolist() == pytest.approx([math.log(0.8 / 0.2)])


def test_to_moves_both_tables():
    schedule = build_schedule(DiffusionConfig()).to("meta")
    assert schedule.alphas.device.type == schedule.sigmas.device.type == "meta"


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"num_timesteps": 0}, "diffusion.num_timesteps=0"),
        ({"num_timesteps": 100_000}, "diffusion.num_timesteps=100000"),
        ({"beta_start": 0.0}, "diffusion.beta_start=0.0"),
        ({"beta_start": 0.02}, "diffusion.beta_start=0.02"),
        ({"beta_end": 1.0}, "diffusion.beta_end=1.0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(change, names):
    with pytest.raises(UserError) as caught:
        build_schedule(DiffusionConfig(**change))
    assert names in caught.value.setting


def test_add_noise_mixes_each_sample_at_its_own_timestep():
    schedule = build_schedule(DiffusionConfig(num_timesteps=10))
    latents, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([9, 0, 4])
    noisy = add_noise(schedule, latents, noise, timesteps)
    for i, t in enumerate(timesteps):
        expected = schedule.alphas[t] * latents[i] + schedule.sigmas[t] * noise[i]
        torch.testing.assert_close(noisy[i], expected)


def test_add_noise_matches_diffusers_and_computes_in_float32():
    schedule = build_schedule(DiffusionConfig())
    theirs = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latents, noise = torch.randn(2, 4, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    latents, noise = latents.bfloat16(), noise.bfloat16()
    timesteps = torch.tensor([0, 1, 500, 999])
    expected = theirs.add_noise(latents.float(), noise.float(), timesteps)
    ours = add_noise(schedule, latents, noise, timesteps)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
