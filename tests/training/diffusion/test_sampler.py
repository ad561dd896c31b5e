from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.diffusion import DiffusionConfig, SamplerConfig
from conf.enums import Prediction, SamplerKind, ScheduleKind
from conf.errors import UserError
from tests.training.diffusion.gaussian import Gaussian
from training.diffusion.sampler import ddim_sample, ddpm_sample, sample, trailing_timesteps
from training.diffusion.schedule import build_schedule

BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
SCHEDULE = build_schedule(DiffusionConfig(schedule=ScheduleKind.scaled_linear, **BETAS))
SHORT = build_schedule(DiffusionConfig(num_timesteps=20, beta_start=0.01, beta_end=0.5))
EPSILON, VELOCITY = Prediction.epsilon, Prediction.velocity


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def wavy(noisy, timesteps, condition):
    """A denoiser of no distribution, so that no step can hide behind a linear one."""
    return torch.sin(noisy + timesteps.view(-1, 1) / 300)


def noise_of_step(step):
    return normal(1, 3, seed=step)


def never(step):
    raise AssertionError("noise was drawn")


def walk_of_diffusers(scheduler, x, steps, arguments_of):
    scheduler.set_timesteps(steps)
    for step, t in enumerate(scheduler.timesteps):
        output = wavy(x, t.expand(len(x)), None)
        x = scheduler.step(output, t, x, **arguments_of(step)).prev_sample
    return x


# --- timesteps --------------------------------------------------------------------------------


@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
@settings(max_examples=200, deadline=None)
def test_timesteps_fall_evenly_from_the_last(case):
    num, steps = case
    timesteps = trailing_timesteps(num, steps)
    assert len(timesteps) == steps
    assert timesteps[0] == num - 1
    ends = [*timesteps, -1]
    gaps = [t - s for t, s in pairwise(ends)]
    assert all(abs(gap - num / steps) <= 1 and gap >= 1 for gap in gaps)


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 50, 300, 999, 1000])
def test_timesteps_match_diffusers(steps):
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert trailing_timesteps(1000, steps) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [0, 21])
def test_more_steps_than_timesteps_are_refused(steps):
    with pytest.raises(UserError) as caught:
        ddim_sample(wavy, normal(1, 1), None, SHORT, EPSILON, steps, 0.0, never)
    assert caught.value.setting == f"sampler.steps={steps}"
    with pytest.raises(UserError):
        ddpm_sample(wavy, normal(1, 1), None, SHORT, EPSILON, steps, never)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_out_of_range_is_refused(eta):
    with pytest.raises(UserError) as caught:
        ddim_sample(wavy, normal(1, 1), None, SHORT, EPSILON, 2, eta, never)
    assert caught.value.setting == f"sampler.eta={eta}"


# --- against diffusers ------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
@pytest.mark.parametrize(
    ("prediction", "name"),
    [(EPSILON, "epsilon"), (Prediction.x0, "sample"), (VELOCITY, "v_prediction")],
)
def test_ddim_matches_diffusers(prediction, name, steps, eta):
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        **BETAS,
        prediction_type=name,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
    )
    noises = normal(steps, 2, 5, seed=1)

    x = normal(2, 5)
    expected = walk_of_diffusers(
        scheduler, x, steps, lambda step: {"eta": eta, "variance_noise": noises[step]}
    )
    ours = ddim_sample(wavy, x, None, SCHEDULE, prediction, steps, eta, noises.__getitem__)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_ddpm_matches_the_closed_form_posterior(steps):
    """Bayes' rule written out: a product of the Gaussians q(x_t | x_s) and q(x_s | x_0)."""
    noises = normal(steps, 2, 5, seed=1, dtype=torch.float64)
    expected = x = normal(2, 5, dtype=torch.float64)
    timesteps = trailing_timesteps(1000, steps)
    alphas, sigmas = SCHEDULE.alphas.double(), SCHEDULE.sigmas.double()
    for step, t in enumerate(timesteps):
        x0 = (expected - sigmas[t] * wavy(expected, torch.tensor(t), None)) / alphas[t]
        if step == steps - 1:
            expected = x0
            break
        s = timesteps[step + 1]
        keep = alphas[t] / alphas[s]
        added = 1 - keep**2
        precision = keep**2 / added + 1 / sigmas[s] ** 2
        mean = (keep * expected / added + alphas[s] * x0 / sigmas[s] ** 2) / precision
        expected = mean + precision**-0.5 * noises[step]
    ours = ddpm_sample(wavy, x, None, SCHEDULE, EPSILON, steps, noises.__getitem__)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddpm_step_matches_diffusers(steps):
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        **BETAS,
        timestep_spacing="trailing",
        variance_type="fixed_small",
        clip_sample=False,
    )

    # Its step draws from a generator; `normal` draws the same from the same seed.
    x = normal(2, 5)
    expected = walk_of_diffusers(
        scheduler, x, steps, lambda step: {"generator": torch.Generator().manual_seed(step)}
    )
    ours = ddpm_sample(
        wavy, x, None, SCHEDULE, EPSILON, steps, lambda step: normal(2, 5, seed=step)
    )
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 6, 20])
@pytest.mark.parametrize("prediction", list(Prediction))
def test_ddim_with_eta_1_is_ddpm(prediction, steps):
    """Song et al. 2021, Sec. 4.1: with Eq. 16's sigma, the process is DDPM's."""
    x, noises = normal(3, 4), normal(steps, 3, 4, seed=1)
    ddim = ddim_sample(wavy, x, None, SHORT, prediction, steps, 1.0, noises.__getitem__)
    ddpm = ddpm_sample(wavy, x, None, SHORT, prediction, steps, noises.__getitem__)
    torch.testing.assert_close(ddim, ddpm, atol=1e-5, rtol=1e-5)


# --- against a Gaussian -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(ScheduleKind))
@pytest.mark.parametrize("prediction", list(Prediction))
@pytest.mark.parametrize("changes", [{}, {"continuous": True}, {"resolution_shift": 0.5}], ids=str)
def test_ddim_maps_noise_onto_the_data(prediction, kind, changes):
    """The probability flow of a Gaussian is affine: x_0 = mean + std * (x_T standardised)."""
    if kind is ScheduleKind.flow and prediction is EPSILON:
        return  # refused: noise alone says nothing of the latents
    schedule = build_schedule(DiffusionConfig(schedule=kind, **BETAS, **changes))
    data = Gaussian(schedule, prediction)
    x = torch.tensor([[-2.0], [0.0], [1.0]], dtype=torch.float64)
    ours = ddim_sample(data.denoise, x, None, schedule, prediction, 1000, 0.0, never)
    alpha, sigma = schedule.alphas[-1].item(), schedule.sigmas[-1].item()
    standardised = (x - alpha * data.mean) / (alpha**2 * data.std**2 + sigma**2) ** 0.5
    torch.testing.assert_close(ours, data.mean + data.std * standardised, atol=0.01, rtol=0)


@pytest.mark.parametrize("eta", [None, 0.5, 1.0])
def test_ancestral_samples_have_the_mean_and_spread_of_the_data(eta):
    """With a linear denoiser the sample is affine in every noise that goes in.

    So a batch that holds one unit of one noise a row gives its exact mean and variance, without
    drawing: row 0 has no noise, row 1 a unit of x_T, row 2 + k a unit of step k's.
    """
    steps, data = 1000, Gaussian(SCHEDULE, VELOCITY)
    units = torch.eye(steps + 2, dtype=torch.float64)[:, 1:]
    start, of_step = units[:, :1], lambda step: units[:, step + 1 : step + 2]
    if eta is None:
        x0 = ddpm_sample(data.denoise, start, None, SCHEDULE, VELOCITY, steps, of_step)
    else:
        x0 = ddim_sample(data.denoise, start, None, SCHEDULE, VELOCITY, steps, eta, of_step)
    mean, std = x0[0].item(), (x0[1:] - x0[0]).norm().item()
    # x_T starts at mean 0 where noised data has alpha_T mean. And a step treats its guess of x_0 as
    # x_0, so the spread of x_0 given x_t is lost: 1.3% here, and less the more timesteps there are.
    assert mean == pytest.approx(data.mean, abs=0.01)
    assert std == pytest.approx(data.std, rel=0.02)
    assert (x0[2:-1] != x0[0]).all()  # each step's noise counts
    assert x0[-1] == x0[0]  # but the last


# --- what the caller sees ---------------------------------------------------------------------


def ddim_with_noise(denoiser, noise, condition, schedule, prediction, steps, *rest):
    return ddim_sample(denoiser, noise, condition, schedule, prediction, steps, 1.0, *rest)


both_samplers = pytest.mark.parametrize("sampler", [ddim_with_noise, ddpm_sample])


@both_samplers
def test_the_denoiser_is_called_once_a_step_and_noise_drawn_between(sampler):
    condition, events = object(), []

    def denoiser(noisy, timesteps, got):
        assert got is condition
        assert timesteps.dtype == torch.int64
        assert timesteps.shape == (2,)
        events.append(("denoise", *timesteps.tolist()))
        return noisy

    def noise_of_step(step):
        events.append(("noise", step))
        return torch.zeros(2, 3)

    def progress(done, total):
        events.append(("progress", done, total))

    sampler(denoiser, normal(2, 3), condition, SHORT, EPSILON, 2, noise_of_step, progress)
    assert events == [
        ("denoise", 19, 19),
        ("noise", 0),
        ("progress", 1, 2),
        ("denoise", 9, 9),
        ("progress", 2, 2),
    ]


@both_samplers
def test_a_low_precision_answer_is_computed_with_in_the_precision_of_the_noise(sampler):
    weight = torch.tensor(0.5, requires_grad=True)

    def run(denoiser):
        return sampler(denoiser, normal(1, 3), None, SHORT, EPSILON, 4, noise_of_step)

    low = run(lambda noisy, *_: (weight * noisy).bfloat16())
    high = run(lambda noisy, *_: (weight * noisy).bfloat16().float())
    assert low.dtype == torch.float32
    assert torch.equal(low, high)
    assert not low.requires_grad  # no graph over all steps is kept


def test_the_noise_of_the_caller_is_left_as_it_was():
    x = normal(1, 3)
    ddim_sample(wavy, x, None, SHORT, EPSILON, 3, 0.0, never)
    assert torch.equal(x, normal(1, 3))


@both_samplers
def test_a_sample_does_not_depend_on_global_random_state(sampler):
    before = torch.get_rng_state()
    first = sampler(wavy, normal(1, 3), None, SHORT, EPSILON, 5, noise_of_step)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(1)
    second = sampler(wavy, normal(1, 3), None, SHORT, EPSILON, 5, noise_of_step)
    assert torch.equal(first, second)


# --- sample -----------------------------------------------------------------------------------


def test_sample_reads_every_setting():
    x, seen = normal(1, 3), []

    def pulled(noisy, timesteps, condition):
        return torch.sin(noisy) + condition

    def run(**settings):
        return sample(
            SamplerConfig(**settings),
            pulled,
            x,
            0.3,
            0.1,
            SHORT,
            VELOCITY,
            noise_of_step,
            lambda *done: seen.append(done),
        )

    def strengthened(noisy, timesteps, condition):
        return torch.sin(noisy) + 0.1 + 2.0 * (condition - 0.1)

    ddim = ddim_sample(strengthened, x, 0.3, SHORT, VELOCITY, 4, 0.7, noise_of_step)
    ddpm = ddpm_sample(strengthened, x, 0.3, SHORT, VELOCITY, 5, noise_of_step)
    got_ddim = run(kind=SamplerKind.ddim, steps=4, guidance_scale=2.0, eta=0.7)
    torch.testing.assert_close(got_ddim, ddim)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    got_ddpm = run(kind=SamplerKind.ddpm, steps=5, guidance_scale=2.0)
    torch.testing.assert_close(got_ddpm, ddpm)
    assert len(seen) == 9
