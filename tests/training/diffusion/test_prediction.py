import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.diffusion import DiffusionConfig
from conf.enums import Prediction, ScheduleKind
from training.diffusion.prediction import to_x0_and_epsilon, training_target
from training.diffusion.schedule import Schedule, add_noise, build_schedule

KINDS = list(Prediction)
DISCRETE = [ScheduleKind.linear, ScheduleKind.scaled_linear, ScheduleKind.cosine]


@given(
    kind=st.sampled_from(KINDS),
    schedule_kind=st.sampled_from(DISCRETE),
    timesteps=st.lists(st.integers(0, 99), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_a_perfect_answer_gives_back_the_latents_and_the_noise(
    kind, schedule_kind, timesteps, seed
):
    # In float64, so that dividing by the cosine schedule's last alpha costs no digits.
    config = DiffusionConfig(schedule=schedule_kind, num_timesteps=100)
    alphas = build_schedule(config).alphas.double()
    schedule = Schedule(alphas, (1 - alphas**2).sqrt())
    latents, noise = torch.randn(
        2, len(timesteps), 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    t = torch.tensor(timesteps)
    noisy = add_noise(schedule, latents, noise, t)
    output = training_target(kind, schedule, latents, noise, t)
    x0, epsilon = to_x0_and_epsilon(kind, output, noisy, *schedule.at(t, 3))
    torch.testing.assert_close(x0, latents, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(epsilon, noise, atol=1e-9, rtol=1e-9)


@given(
    kind=st.sampled_from(KINDS),
    alpha=st.floats(0.01, 0.9999),
    output=st.floats(-10, 10),
    noisy=st.floats(-10, 10),
)
@settings(max_examples=60, deadline=None)
def test_any_answer_is_read_as_parts_that_add_up_to_the_noisy_latents(kind, alpha, output, noisy):
    sigma = (1 - alpha**2) ** 0.5
    noisy_tensor = torch.tensor([noisy], dtype=torch.float64)
    output_tensor = torch.tensor([output], dtype=torch.float64)
    x0, epsilon = to_x0_and_epsilon(kind, output_tensor, noisy_tensor, alpha, sigma)
    assert (alpha * x0 + sigma * epsilon).item() == pytest.approx(noisy, abs=1e-9)
    answer = {
        Prediction.epsilon: epsilon,
        Prediction.x0: x0,
        Prediction.velocity: alpha * epsilon - sigma * x0,
        Prediction.flow: epsilon - x0,
    }[kind]
    assert answer.item() == pytest.approx(output, abs=1e-9)


def test_targets_are_what_their_names_say():
    schedule = build_schedule(DiffusionConfig())
    theirs = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latents, noise = torch.randn(2, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 10, 500, 999])
    assert training_target(Prediction.epsilon, schedule, latents, noise, t) is noise
    assert training_target(Prediction.x0, schedule, latents, noise, t) is latents
    velocity = training_target(Prediction.velocity, schedule, latents, noise, t)
    torch.testing.assert_close(
        velocity, theirs.get_velocity(latents, noise, t), atol=1e-5, rtol=1e-5
    )
