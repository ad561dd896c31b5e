"""Signal and noise over time, each schedule from its paper.

Two kinds of mixing. Variance preserving ones keep alpha^2 + sigma^2 = 1; variance exploding noise
is one of them too, once what the denoiser sees is scaled to unit variance, x / sqrt(1 + sigma^2).
The straight line of a flow keeps alpha + sigma = 1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from conf.diffusion import DiffusionConfig
from conf.enums import ScheduleKind
from conf.errors import UserError

COSINE_OFFSET = 0.008  # s of Nichol & Dhariwal 2021, Sec. 3.2: keeps the first betas from vanishing
COSINE_BETA_MAX = 0.999  # same section: keeps alpha above 0 at the last timestep
# Continuous variance preserving schedules end here: beyond is next to no signal, or no noise.
MAX_LOG_SNR = 20.0


def levels_of(config: DiffusionConfig) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    """Alpha and sigma as a function of t in [0, 1], float64, of a continuous process; or None."""
    shift = config.resolution_shift
    if config.schedule is ScheduleKind.flow:
        return lambda t: _flow(t, shift)
    if not config.continuous and config.schedule is not ScheduleKind.ve:
        return None
    log_snr = {
        ScheduleKind.linear: _linear,
        ScheduleKind.scaled_linear: _scaled_linear,
        ScheduleKind.cosine: _cosine,
        ScheduleKind.ve: _exploding,
    }[config.schedule]

    def levels(t: Tensor) -> tuple[Tensor, Tensor]:
        shifted = log_snr(config, t).clamp(-MAX_LOG_SNR, MAX_LOG_SNR) - 2 * math.log(shift)
        return shifted.sigmoid().sqrt(), (-shifted).sigmoid().sqrt()

    return levels


def _flow(t: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """A straight line from latents to noise.

    Source: Liu et al. 2023, Eq. 1, with t from data to noise; the shift: Esser et al. 2024, Eq. 23.
    """
    sigma = shift * t / (1 + (shift - 1) * t)
    return 1 - sigma, sigma


def _linear(config: DiffusionConfig, t: Tensor) -> Tensor:
    """Log SNR for beta(t) linear in t. Source: Song et al. 2021, Eq. 33, beta bar = T beta."""
    start, end = config.num_timesteps * config.beta_start, config.num_timesteps * config.beta_end
    return _log_snr_of(start * t + (end - start) * t**2 / 2)


def _scaled_linear(config: DiffusionConfig, t: Tensor) -> Tensor:
    """The same for beta(t) whose root is linear in t, the limit of Rombach et al. 2022's."""
    start, end = config.beta_start**0.5, config.beta_end**0.5
    rise = end - start
    integral = start**2 * t + start * rise * t**2 + rise**2 * t**3 / 3
    return _log_snr_of(config.num_timesteps * integral)


def _log_snr_of(integral: Tensor) -> Tensor:
    """Log SNR after the integral of beta: alpha^2 = exp(-integral), Song et al. 2021, Eq. 29."""
    return -torch.expm1(integral).log()


def _cosine(config: DiffusionConfig, t: Tensor) -> Tensor:
    """Source: Nichol & Dhariwal 2021, Eq. 17: alpha^2 = f(t) / f(0), without clipped betas."""
    angle = (t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2
    alphas_squared = angle.cos().square() / math.cos(_first_angle()) ** 2
    return (alphas_squared / (1 - alphas_squared).clamp(min=1e-300)).log()


def _first_angle() -> float:
    return COSINE_OFFSET / (1 + COSINE_OFFSET) * math.pi / 2


def _exploding(config: DiffusionConfig, t: Tensor) -> Tensor:
    """Log SNR of a noise that grows geometrically. Source: Song et al. 2021, Eq. 30."""
    low, high = math.log(config.sigma_min), math.log(config.sigma_max)
    return -2 * (low + (high - low) * t)


def build_alphas_and_sigmas(config: DiffusionConfig) -> tuple[Tensor, Tensor]:
    """The tables of a discrete process, (T,), float32.

    Raises:
        UserError: If a setting is out of its range, or float32 cannot hold the last alpha.

    Source: Ho et al. 2020, Eq. 4: alpha_t^2 = prod_{i <= t} (1 - beta_i).
    """
    if config.num_timesteps < 1:
        raise UserError(
            f"diffusion.num_timesteps={config.num_timesteps}",
            "there is no timestep",
            "give 1 or more",
        )
    # The product as a sum of logs, so that the first sigmas do not come from 1 - (nearly 1).
    log_alphas_squared = (-_betas(config)).log1p().cumsum(0)
    alphas = (log_alphas_squared / 2).exp()
    sigmas = (-log_alphas_squared.expm1()).sqrt()
    if alphas[-1].float() == 0:
        raise UserError(
            f"diffusion.num_timesteps={config.num_timesteps}",
            "so many timesteps leave no signal that float32 can hold",
            "give fewer, or a smaller diffusion.beta_end",
        )
    if config.zero_terminal_snr:
        alphas, sigmas = without_last_signal(alphas)
    if config.resolution_shift != 1:
        alphas, sigmas = shifted(alphas, sigmas, config.resolution_shift)
    return alphas.float(), sigmas.float()


def without_last_signal(alphas: Tensor) -> tuple[Tensor, Tensor]:
    """Alphas, (T,), moved and scaled so that the last is 0 and the first stays, and their sigmas.

    Source: Lin et al. 2024, Algorithm 1.
    """
    moved = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    return moved, (1 - moved.square()).sqrt()


def shifted(alphas: Tensor, sigmas: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """Alphas and sigmas, (T,), with sigma / alpha multiplied, variance preserving again.

    Source: Hoogeboom et al. 2023 (simple diffusion), Sec. 3: log SNR - 2 log(shift).
    """
    length = (alphas.square() + (shift * sigmas).square()).sqrt()
    return alphas / length, shift * sigmas / length


def _betas(config: DiffusionConfig) -> Tensor:
    """Variance that each timestep adds, (T,), float64, in (0, 1)."""
    num = config.num_timesteps
    if config.schedule is ScheduleKind.cosine:
        # Eq. 17 of Nichol & Dhariwal 2021; its t counts from 1, our timestep from 0.
        t = torch.arange(num + 1, dtype=torch.float64) / num
        angle = (t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2
        alphas_squared = angle.cos().square()
        return (1 - alphas_squared[1:] / alphas_squared[:-1]).clamp(max=COSINE_BETA_MAX)
    start, end = config.beta_start, config.beta_end
    if not 0 < start <= end < 1:
        raise UserError(
            f"diffusion.beta_start={start} diffusion.beta_end={end}",
            "these are no variances in rising order",
            "choose 0 < beta_start <= beta_end < 1",
        )
    if config.schedule is ScheduleKind.linear:
        return torch.linspace(start, end, num, dtype=torch.float64)  # Sec. 4 of Ho et al. 2020
    # Linear in sqrt(beta), as the code of Rombach et al. 2022 has it.
    return torch.linspace(start**0.5, end**0.5, num, dtype=torch.float64).square()
