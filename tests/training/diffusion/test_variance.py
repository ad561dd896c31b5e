import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from conf.diffusion import DiffusionConfig
from conf.enums import Prediction, ScheduleKind
from tests.training.diffusion.gaussian import Gaussian
from training.diffusion.loss import diffusion_loss, hybrid_losses
from training.diffusion.sampler import ddim_sample, ddpm_sample
from training.diffusion.schedule import add_noise, build_schedule
from training.diffusion.variance import (
    bound_terms,
    gaussian_kl,
    gaussian_nll,
    learned_log_variance,
    posterior_step,
    split_output,
)

LINEAR = DiffusionConfig(
    schedule=ScheduleKind.linear, num_timesteps=50, beta_start=0.002, beta_end=0.2
)
SCHEDULE = build_schedule(LINEAR)
ALL = torch.arange(50)
EXACT = {
    kind: build_schedule(DiffusionConfig(schedule=kind, num_timesteps=50, **more))
    for kind, more in ((ScheduleKind.scaled_linear, {"beta_end": 0.2}), (ScheduleKind.cosine, {}))
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact_log_variance(data, timesteps):
    """Log variance of x_s given x_t for Gaussian data, by the rule for Gaussian conditionals."""
    alpha, sigma = (one.double() for one in data.schedule.at(timesteps, 1))
    alpha_s, sigma_s = (one.double() for one in data.schedule.at(timesteps - 1, 1))
    ratio = alpha / alpha_s
    variance_s = (alpha_s * data.std) ** 2 + sigma_s**2
    variance_t = (alpha * data.std) ** 2 + sigma**2
    return (variance_s - (ratio * variance_s) ** 2 / variance_t).log()


def raw_of(log_variance, timesteps):
    """What a denoiser has to say for that log variance, (B,)."""
    step = posterior_step(SCHEDULE, timesteps, 1)
    share = (log_variance - step.log_beta_tilde) / (step.log_beta - step.log_beta_tilde)
    return 2 * share - 1


def test_the_bounds_are_the_papers():
    betas = torch.linspace(0.002, 0.2, 50, dtype=torch.float64)
    squared = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), squared[:-1]])
    beta_tilde = (1 - before) / (1 - squared) * betas  # Eq. 7 of Ho et al. 2020
    step = posterior_step(SCHEDULE, ALL, 1)
    close = {"rtol": 1e-4, "atol": 0}  # of float32 tables
    torch.testing.assert_close(step.log_beta.exp(), betas, **close)
    torch.testing.assert_close(step.log_beta_tilde.exp()[1:], beta_tilde[1:], **close)
    assert step.log_beta_tilde[0] == step.log_beta_tilde[1]
    torch.testing.assert_close(step.from_x0, before.sqrt() * betas / (1 - squared), **close)
    from_noisy = (1 - betas).sqrt() * (1 - before) / (1 - squared)
    torch.testing.assert_close(step.from_noisy, from_noisy, rtol=1e-4, atol=1e-12)


def test_a_share_lies_between_the_bounds_on_a_scale_of_logs():
    low, high = math.log(0.01), math.log(0.09)
    raw = torch.tensor([-1.0, 0.0, 1.0])
    variances = learned_log_variance(raw, high, low).exp()
    torch.testing.assert_close(variances, torch.tensor([0.01, 0.03, 0.09]))


def test_divergence_and_density_are_those_of_torch():
    means, logs = normal(2, 100), normal(2, 100, seed=1)
    first, second = (Normal(means[i], (logs[i] / 2).exp()) for i in (0, 1))
    got = gaussian_kl(means[0], logs[0], means[1], logs[1])
    torch.testing.assert_close(got, kl_divergence(first, second), rtol=1e-4, atol=1e-5)
    values = normal(100, seed=2)
    got = gaussian_nll(values, means[0], logs[0])
    torch.testing.assert_close(got, -first.log_prob(values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", list(Prediction))
def test_terms_are_divergences_of_the_two_posteriors_and_a_density_at_the_first(prediction):
    schedule = EXACT[ScheduleKind.cosine]
    timesteps = torch.tensor([0, 1, 20, 49])
    latents, noise, raw, x0 = normal(4, 4, 3, 5)
    noisy = add_noise(schedule, latents, noise, timesteps)
    alpha, sigma = schedule.at(timesteps, 3)
    epsilon = (noisy - alpha * x0) / sigma
    output = {
        Prediction.epsilon: epsilon,
        Prediction.x0: x0,
        Prediction.velocity: alpha * epsilon - sigma * x0,
        Prediction.flow: epsilon - x0,
    }[prediction]
    got = bound_terms(output, raw, latents, noisy, timesteps, schedule, prediction)
    step = posterior_step(schedule, timesteps, 3)
    ours = Normal(
        step.from_x0 * x0 + step.from_noisy * noisy,
        (learned_log_variance(raw, step.log_beta, step.log_beta_tilde) / 2).exp(),
    )
    true_mean = step.from_x0 * latents + step.from_noisy * noisy
    true = Normal(true_mean, (step.log_beta_tilde / 2).exp().expand_as(true_mean))
    nats = kl_divergence(true, ours)
    nats[0] = -ours.log_prob(latents)[0]
    bits = nats.mean((1, 2)) / math.log(2)
    torch.testing.assert_close(got.double(), bits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("change", [{}, {"zero_terminal_snr": True}])
def test_the_bound_moves_variances_alone(change):
    schedule = build_schedule(DiffusionConfig(num_timesteps=50, **change))
    output, raw = normal(2, 4, 3, 5).requires_grad_().unbind()
    output.retain_grad()
    raw.retain_grad()
    latents, noise = normal(2, 4, 3, 5, seed=1)
    timesteps = torch.tensor([0, 1, 25, 49])

    def denoiser(*_):
        return torch.cat([output, raw], 1)

    errors, terms = hybrid_losses(
        denoiser, latents, noise, timesteps, None, schedule, Prediction.velocity
    )
    assert terms.isfinite().all()
    terms.sum().backward()
    assert output.grad is None or not output.grad.any()
    assert bool(raw.grad.isfinite().all()) and bool(raw.grad.flatten(1).any(1).all())
    alone = diffusion_loss(denoiser, latents, noise, timesteps, None, schedule, Prediction.velocity)
    assert torch.equal(errors, alone)  # what is measured is the error of the prediction alone


def test_the_best_variance_of_gaussian_data_is_found():
    data = Gaussian(SCHEDULE, Prediction.epsilon)
    timesteps, count = torch.tensor([1, 5, 20, 49]), 20_000
    latents = data.mean + data.std * normal(4, 1, count)
    noisy = add_noise(SCHEDULE, latents, normal(4, 1, count, seed=1), timesteps)
    output = data.denoise(noisy, timesteps, None)
    raw = torch.zeros(4, 1, 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        given = (latents, noisy, timesteps, SCHEDULE, Prediction.epsilon)
        loss = bound_terms(output, raw.expand_as(output), *given).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    exact = exact_log_variance(data, timesteps)
    step = posterior_step(SCHEDULE, timesteps, 1)
    assert (step.log_beta_tilde < exact).all() and (exact < step.log_beta).all()
    found = learned_log_variance(
        raw.detach().double().flatten(), step.log_beta, step.log_beta_tilde
    )
    # The mean of `count` squares is off by sqrt(2 / count), 1%, of the part that is not beta tilde.
    torch.testing.assert_close(found, exact, rtol=0, atol=0.03)


def test_a_few_steps_with_exact_variances_keep_the_spread_of_the_data():
    """DDPM with beta tilde loses some; the process of jumps has variances of its own, so the
    denoiser says them by the jump's start."""
    data = Gaussian(SCHEDULE, Prediction.epsilon, mean=0.0, std=0.8)
    starts, count = [49, 39, 29, 19, 9], 40_000
    alphas, sigmas = SCHEDULE.alphas.double(), SCHEDULE.sigmas.double()

    def raw_at(t):
        s = t - 10
        if s < 0:
            return 0.0
        ratio = alphas[t] / alphas[s]
        beta = 1 - ratio**2
        beta_tilde = beta * (sigmas[s] / sigmas[t]) ** 2
        at_s, at_t = ((alphas[i] * data.std) ** 2 + sigmas[i] ** 2 for i in (s, t))
        exact = at_s - (ratio * at_s) ** 2 / at_t
        return float(2 * (exact / beta_tilde).log() / (beta / beta_tilde).log() - 1)

    def denoiser(noisy, timesteps, condition):
        raw = torch.full_like(noisy, raw_at(int(timesteps[0])))
        return torch.cat([data.denoise(noisy, timesteps, condition), raw], 1)

    assert min(abs(raw_at(t)) for t in starts[:-1]) > 0.01  # not what a fresh network says

    def spread(what):
        drawn = ddpm_sample(
            what,
            normal(1, 1, count).double(),
            None,
            SCHEDULE,
            Prediction.epsilon,
            len(starts),
            lambda step: normal(1, 1, count, seed=step + 1).double(),
        )
        return float(drawn.std())

    # The last jump lands on E[x_0 | x_9], whose spread is known.
    variance = (alphas[9] * data.std) ** 2 + sigmas[9] ** 2
    wanted = float(alphas[9] * data.std**2 / variance.sqrt())
    assert spread(denoiser) == pytest.approx(wanted, rel=0.015)
    assert spread(data.denoise) < 0.97 * wanted


def test_ddim_does_not_use_variances():
    def without(noisy, timesteps, condition):
        return torch.sin(noisy + timesteps.view(-1, 1, 1) / 30)

    def beside(noisy, timesteps, condition):
        answer = without(noisy, timesteps, condition)
        return torch.cat([answer, 1e6 * torch.ones_like(answer)], 1)

    def drawn(denoiser):
        noise_of_step = lambda step: normal(2, 3, 4, seed=step)  # noqa: E731
        start = (normal(2, 3, 4, seed=9), None, SCHEDULE, Prediction.epsilon, 5)
        return ddim_sample(denoiser, *start, 1.0, noise_of_step)

    assert torch.equal(drawn(beside), drawn(without))


def test_an_answer_has_as_many_channels_as_the_latents_or_twice_as_many():
    output = normal(2, 6, 4)
    prediction, raw = split_output(output, 3)
    assert torch.equal(prediction, output[:, :3]) and torch.equal(raw, output[:, 3:])
    assert split_output(output, 6)[1] is None
    with pytest.raises(AssertionError):
        split_output(output, 4)
