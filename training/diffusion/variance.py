"""Learned variances of the reverse process: what a denoiser's second half means, and its loss.

Owns the interpolation between the two bounds of the variance and the terms of the variational bound
in closed form. Refuses processes without steps: both bounds are those of a step.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from conf.enums import Prediction
from training.diffusion.prediction import to_x0_and_epsilon
from training.diffusion.schedule import Schedule

VLB_WEIGHT = 0.001  # lambda of Nichol & Dhariwal 2021, Eq. 16


class Step(NamedTuple):
    """The forward process's posterior of x_s given x_t and x_0, for s the timestep before t.

    Its mean is from_x0 x_0 + from_noisy x_t. All broadcast against a batch.

    Attributes:
        from_x0: Factor of x_0.
        from_noisy: Factor of x_t.
        log_beta: Log of the variance that t adds: the reverse process's for data of unit variance.
        log_beta_tilde: Log of the posterior's variance: the reverse process's for a single datum.
            At timestep 0, where that is 0, the one of timestep 1.
    """

    from_x0: Tensor
    from_noisy: Tensor
    log_beta: Tensor
    log_beta_tilde: Tensor


def split_output(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """A denoiser's answer (B, C or 2C, ...) as its prediction (B, C, ...) and what it says of
    variances, same shape, or None.
    """
    if output.shape[1] == channels:
        return output, None
    assert output.shape[1] == 2 * channels, f"{output.shape[1]} channels for {channels}"
    return output[:, :channels], output[:, channels:]


def learned_log_variance(
    raw: Tensor, log_beta: Tensor | float, log_beta_tilde: Tensor | float
) -> Tensor:
    """Log variance of a step of the reverse process.

    Args:
        raw: What the denoiser says, any number: -1 is beta tilde, 1 is beta, and 0, with which a
            fresh network begins, is half way.
        log_beta: Log of beta; a number or a tensor that broadcasts.
        log_beta_tilde: Log of beta tilde, alike.

    Returns:
        Same shape as `raw`.

    Source: Nichol & Dhariwal 2021, Eq. 15, with v = (raw + 1) / 2 as their code has it.
    """
    share = (raw + 1) / 2
    return share * log_beta + (1 - share) * log_beta_tilde


def posterior_step(schedule: Schedule, timesteps: Tensor, ndim: int) -> Step:
    """The posterior at some timesteps of a discrete schedule of two or more.

    Args:
        schedule: On any device.
        timesteps: (B,), int64, in [0, T), on that device.
        ndim: Number of axes of the batch, B counted.

    Returns:
        float64, (B, 1, ..., 1) each.

    Source: Ho et al. 2020, Eq. 7.
    """
    alphas, sigmas = schedule.alphas.double(), schedule.sigmas.double()
    # The clean latent is before timestep 0.
    before = torch.cat([torch.ones_like(alphas[:1]), alphas[:-1]])
    sigmas_before = torch.cat([torch.zeros_like(sigmas[:1]), sigmas[:-1]])
    ratio = alphas / before
    beta = sigmas.square() - (ratio * sigmas_before).square()
    beta_tilde = beta * (sigmas_before / sigmas).square()
    beta_tilde = torch.cat([beta_tilde[1:2], beta_tilde[1:]])
    tables = (
        before * beta / sigmas.square(),
        ratio * (sigmas_before / sigmas).square(),
        beta.log(),
        beta_tilde.log(),
    )
    shape = (-1,) + (1,) * (ndim - 1)
    return Step(*(table[timesteps].view(shape) for table in tables))


def gaussian_kl(mean: Tensor, log_variance: Tensor, other: Tensor, other_log: Tensor) -> Tensor:
    """KL divergence of one diagonal Gaussian from another, element by element, in nats.

    Args:
        mean: Of the first.
        log_variance: Of the first.
        other: Mean of the second.
        other_log: Log variance of the second.
    """
    difference = log_variance - other_log
    squares = (mean - other).square() * (-other_log).exp()
    return 0.5 * (difference.exp() - 1 - difference + squares)


def gaussian_nll(value: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Negative log density of values under a diagonal Gaussian, element by element, in nats."""
    squares = (value - mean).square() * (-log_variance).exp()
    return 0.5 * (math.log(2 * math.pi) + log_variance + squares)


def bound_terms(
    output: Tensor,
    raw: Tensor,
    latents: Tensor,
    noisy: Tensor,
    timesteps: Tensor,
    schedule: Schedule,
    prediction: Prediction,
) -> Tensor:
    """The variational bound's term at each sample's timestep; its gradient reaches `raw` alone.

    At timestep 0 it is the negative log density of the latents under the reverse process's last
    Gaussian. Ho et al.'s decoder term (Eq. 13) integrates that Gaussian over the width of one of
    256 levels of a pixel; latents are real numbers and have no levels. So the bound is that of a
    density, and may be negative.

    Args:
        output: The denoiser's prediction, (B, C, ...).
        raw: What it says of variances, same shape.
        latents: x_0, same shape.
        noisy: x_t, same shape.
        timesteps: (B,), int64.
        schedule: Discrete, on the device of `latents`.
        prediction: What `output` is.

    Returns:
        (B,), float32, bits per element. T times the mean over uniform timesteps estimates the
        bound, but for the term of the last noise, which no weight changes.

    Source: Nichol & Dhariwal 2021, Eq. 4 to 6, and Sec. 3.1 for the stopped gradient.
    """
    step = Step(*(one.float() for one in posterior_step(schedule, timesteps, latents.ndim)))
    alpha, sigma = schedule.at(timesteps, latents.ndim)
    x0, _ = to_x0_and_epsilon(prediction, output.detach().float(), noisy, alpha, sigma)
    log_variance = learned_log_variance(raw.float(), step.log_beta, step.log_beta_tilde)
    true_mean = step.from_x0 * latents + step.from_noisy * noisy
    mean = step.from_x0 * x0 + step.from_noisy * noisy
    kl = gaussian_kl(true_mean, step.log_beta_tilde, mean, log_variance)
    first = (timesteps == 0).view((-1,) + (1,) * (latents.ndim - 1))
    nats = torch.where(first, gaussian_nll(latents, mean, log_variance), kl)
    return nats.flatten(1).mean(1) / math.log(2)
