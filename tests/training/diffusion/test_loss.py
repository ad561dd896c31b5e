import pytest
import torch

from conf.diffusion import DiffusionConfig
from conf.enums import Prediction
from tests.training.diffusion.gaussian import Gaussian
from training.diffusion.loss import diffusion_loss
from training.diffusion.schedule import add_noise, build_schedule

SCHEDULE = build_schedule(DiffusionConfig(num_timesteps=100, beta_end=0.1))


@pytest.mark.parametrize("prediction", list(Prediction))
def test_loss_of_the_exact_denoiser_is_the_posterior_variance(prediction):
    data = Gaussian(SCHEDULE, prediction)
    timesteps = torch.tensor([0, 10, 50, 99])
    num = 100_000
    generator = torch.Generator().manual_seed(0)
    latents = data.mean + data.std * torch.randn(4, num, generator=generator)
    noise = torch.randn(4, num, generator=generator)
    loss = diffusion_loss(data.denoise, latents, noise, timesteps, None, SCHEDULE, prediction)
    assert loss.dtype == torch.float32  # the denoiser answers in float64
    # A mean of squares of `num` Gaussians is off by sqrt(2 / num), 0.45%; allow 4 of that.
    torch.testing.assert_close(
        loss.double(), data.loss(timesteps), rtol=4 * (2 / num) ** 0.5, atol=0
    )


@pytest.mark.parametrize("prediction", list(Prediction))
def test_loss_is_the_squared_error_of_each_sample(prediction):
    latents, noise = torch.randn(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([5, 50, 99])
    alpha, sigma = SCHEDULE.at(timesteps, 4)
    target = {
        Prediction.epsilon: noise,
        Prediction.x0: latents,
        Prediction.velocity: alpha * noise - sigma * latents,
        Prediction.flow: noise - latents,
    }[prediction]
    off_by = torch.tensor([0.0, 1.0, 3.0]).view(3, 1, 1, 1)
    loss = diffusion_loss(
        lambda *_: target + off_by, latents, noise, timesteps, None, SCHEDULE, prediction
    )
    torch.testing.assert_close(loss, torch.tensor([0.0, 1.0, 9.0]))


def test_the_denoiser_gets_noisy_latents_timesteps_and_the_condition_untouched():
    latents, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    timesteps, condition = torch.tensor([1, 2, 3]), object()
    calls = []

    def denoiser(*arguments):
        calls.append(arguments)
        return torch.zeros(3, 4)

    diffusion_loss(denoiser, latents, noise, timesteps, condition, SCHEDULE, Prediction.epsilon)
    [(noisy, got_timesteps, got_condition)] = calls
    torch.testing.assert_close(noisy, add_noise(SCHEDULE, latents, noise, timesteps))
    assert got_timesteps is timesteps
    assert got_condition is condition


def test_the_error_is_taken_in_float32_and_has_a_gradient():
    latents, noise = torch.zeros(1, 4), torch.full((1, 4), 1.001)
    output = torch.ones(1, 4, dtype=torch.bfloat16, requires_grad=True)
    loss = diffusion_loss(
        lambda *_: output, latents, noise, torch.tensor([0]), None, SCHEDULE, Prediction.epsilon
    )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1e-6, rel=1e-3)  # bfloat16 would round 1.001 to 1
    loss.sum().backward()
    assert (output.grad != 0).all()
