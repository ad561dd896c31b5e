"""From noise to latents: DDIM and DDPM as plain functions of a denoiser, a noise and a schedule.

Draws nothing itself: the first noise and the noise of each step come from the caller, so a sample
is a function of its arguments.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from conf.diffusion import SamplerConfig
from conf.enums import Prediction, SamplerKind
from conf.errors import UserError
from training.diffusion.guidance import guided
from training.diffusion.prediction import Denoiser, to_x0_and_epsilon
from training.diffusion.schedule import Schedule
from training.diffusion.variance import learned_log_variance, split_output

NoiseOfStep = Callable[[int], Tensor]  # step, from 0 -> standard normal (B, ...)
OnStep = Callable[[int, int], None]  # called after each step with (steps done, steps in all)


class Jump(NamedTuple):
    """One step of a sampler, from x_t to the less noisy x_s."""

    step: int
    time: float
    alpha_t: float
    sigma_t: float
    alpha_s: float
    sigma_s: float

    @property
    def ratio(self) -> float:
        """alpha_{t|s}, the signal that the forward process keeps from s to t, in (0, 1]."""
        return self.alpha_t / self.alpha_s

    @property
    def fresh(self) -> float:
        """sigma_{t|s}^2 / sigma_t^2, the share of x_t's noise added after s, in [0, 1].

        Source: Kingma et al. 2021, Appendix A. Equal to (1 - ratio^2) / sigma_t^2, without that
        form's cancellation where sigma is small.
        """
        return (self.sigma_t**2 - self.ratio**2 * self.sigma_s**2) / self.sigma_t**2


def trailing_timesteps(num_timesteps: int, steps: int) -> list[int]:
    """Timesteps to visit: evenly spaced, falling, from T-1, where sampling must start.

    Raises:
        UserError: If there are not that many timesteps.

    Source: Lin et al. 2024, Sec. 3.3 and Table 2, "trailing".
    """
    if not 1 <= steps <= num_timesteps:
        raise UserError(
            f"sampler.steps={steps}",
            f"the denoiser was trained on {num_timesteps} timesteps",
            f"give 1 to {num_timesteps}",
        )
    return [round(num_timesteps * left / steps) - 1 for left in range(steps, 0, -1)]


def _jumps(schedule: Schedule, steps: int) -> Iterator[Jump]:
    """The steps of a sampler; the last one lands on the clean latent, alpha 1 and sigma 0."""
    alphas, sigmas, times = (
        one.tolist() for one in (schedule.alphas, schedule.sigmas, schedule.times)
    )
    levels = [(times[t], alphas[t], sigmas[t]) for t in trailing_timesteps(len(alphas), steps)]
    targets = [(alpha, sigma) for _, alpha, sigma in levels[1:]] + [(1.0, 0.0)]
    for step, (level, target) in enumerate(zip(levels, targets, strict=True)):
        yield Jump(step, *level, *target)


def _predict(
    denoiser: Denoiser, noisy: Tensor, condition: Any, prediction: Prediction, jump: Jump
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The denoiser's x_0 and epsilon at the jump's start, in the dtype of `noisy`.

    Third comes what it says of variances, if it does.
    """
    timesteps = torch.full((len(noisy),), jump.time, device=noisy.device)
    answer = denoiser(noisy, timesteps, condition).to(noisy.dtype)
    output, raw = split_output(answer, noisy.shape[1])
    return *to_x0_and_epsilon(prediction, output, noisy, jump.alpha_t, jump.sigma_t), raw


def _reverse_std(jump: Jump, raw: Tensor | None) -> Tensor | float:
    """Standard deviation of a jump of the reverse process that does not land on the clean latent.

    Source: Nichol & Dhariwal 2021, Eq. 15, and Sec. 4 for jumps over timesteps.
    """
    if raw is None:
        return jump.sigma_s * jump.fresh**0.5
    log_beta = math.log(jump.fresh * jump.sigma_t**2)
    log_beta_tilde = math.log(jump.fresh * jump.sigma_s**2)
    return (0.5 * learned_log_variance(raw, log_beta, log_beta_tilde)).exp()


@torch.no_grad()
def ddim_sample(
    denoiser: Denoiser,
    noise: Tensor,
    condition: Any,
    schedule: Schedule,
    prediction: Prediction,
    steps: int,
    eta: float,
    noise_of_step: NoiseOfStep,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample with DDIM. What the denoiser says of variances, if it does, is not used.

    Args:
        denoiser: Called once a step.
        noise: x_T, standard normal, (B, ...). Its dtype is that of the computation.
        condition: Handed on to the denoiser.
        schedule: The one that the denoiser was trained with, on any device.
        prediction: What the denoiser predicts.
        steps: Denoiser evaluations, in [1, T].
        eta: 0 is deterministic, 1 has the noise of DDPM; in [0, 1].
        noise_of_step: Noise of each step but the last; not called where eta is 0.
        on_step: Called after each step.

    Returns:
        x_0, like `noise`.

    Raises:
        UserError: If `steps` or `eta` is out of range.

    Source: Song et al. 2021, Eq. 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"sampler.eta={eta}", "it scales DDPM's noise", "give 0 to 1")
    x = noise
    for jump in _jumps(schedule, steps):
        x0, epsilon, _ = _predict(denoiser, x, condition, prediction, jump)
        # Eq. 16: std = eta * posterior std. What is left of sigma_s^2 points back along epsilon.
        std = eta * jump.sigma_s * jump.fresh**0.5
        x = jump.alpha_s * x0 + jump.sigma_s * (1 - eta**2 * jump.fresh) ** 0.5 * epsilon
        if std > 0:
            x = x + std * noise_of_step(jump.step)
        if on_step:
            on_step(jump.step + 1, steps)
    return x


@torch.no_grad()
def ddpm_sample(
    denoiser: Denoiser,
    noise: Tensor,
    condition: Any,
    schedule: Schedule,
    prediction: Prediction,
    steps: int,
    noise_of_step: NoiseOfStep,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample with DDPM: draw each x_s from the forward process's posterior given x_t and x_0.

    The variance is the posterior's, beta tilde, or what the denoiser says, if it says any. Fewer
    steps than timesteps skip timesteps.

    Args:
        denoiser: Called once a step. This and all the rest as for `ddim_sample`.
        noise: x_T, (B, ...).
        condition: Handed on.
        schedule: The one of training.
        prediction: What the denoiser predicts.
        steps: Denoiser evaluations, in [1, T].
        noise_of_step: Noise of each step but the last.
        on_step: Called after each step.

    Returns:
        x_0, like `noise`.

    Raises:
        UserError: If `steps` is out of range.

    Source: Ho et al. 2020, Eq. 6 and 7; skipping: Nichol & Dhariwal 2021, Sec. 4.
    """
    x = noise
    for jump in _jumps(schedule, steps):
        x0, _, raw = _predict(denoiser, x, condition, prediction, jump)
        # Eq. 7, with sqrt(abar_{t-1}) beta_t / (1 - abar_t) = alpha_s fresh.
        from_noisy = jump.ratio * jump.sigma_s**2 / jump.sigma_t**2
        x = jump.alpha_s * jump.fresh * x0 + from_noisy * x
        if jump.sigma_s > 0:
            x = x + _reverse_std(jump, raw) * noise_of_step(jump.step)
        if on_step:
            on_step(jump.step + 1, steps)
    return x


def sample(
    config: SamplerConfig,
    denoiser: Denoiser,
    noise: Tensor,
    condition: Any,
    empty_condition: Any,
    schedule: Schedule,
    prediction: Prediction,
    noise_of_step: NoiseOfStep,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample as the configuration says: its sampler, its steps, its guidance.

    Args:
        config: Reads all of it; `eta` for DDIM only.
        denoiser: Called once a step, or twice where `guidance_scale` is not 1.
        noise: x_T, standard normal, (B, ...). Its dtype is that of the computation.
        condition: Handed on to the denoiser.
        empty_condition: The condition of an empty caption, for the same batch.
        schedule: The one that the denoiser was trained with, on any device.
        prediction: What the denoiser predicts.
        noise_of_step: Noise of each step that needs some.
        on_step: Called after each step.

    Returns:
        x_0, like `noise`.

    Raises:
        UserError: If `config.steps` or `config.eta` is out of range.
    """
    denoiser = guided(denoiser, empty_condition, config.guidance_scale)
    start = (denoiser, noise, condition, schedule, prediction, config.steps)
    if config.kind is SamplerKind.ddim:
        return ddim_sample(*start, config.eta, noise_of_step, on_step)
    return ddpm_sample(*start, noise_of_step, on_step)
