"""The forward process: how much signal and how much noise each timestep holds.

Owns the tables alpha and sigma and the mixing of latents with noise. Draws no noise and no
timesteps: both come from the caller.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from conf.diffusion import DiffusionConfig
from conf.enums import ScheduleKind
from conf.errors import UserError

COSINE_OFFSET = 0.008  # s of Nichol & Dhariwal 2021, Sec. 3.2: keeps the first betas from vanishing
COSINE_BETA_MAX = 0.999  # same section: keeps alpha above 0 at the last timestep


@dataclass(frozen=True, eq=False)
class Schedule:
    """A variance preserving forward process, x_t = alpha_t x_0 + sigma_t epsilon.

    Timestep 0 is the least noisy, not the clean latent: that one is outside the tables.

    Attributes:
        alphas: Signal of each timestep, (T,), float32, in (0, 1), never rising.
        sigmas: Noise of each timestep, (T,), float32, in (0, 1], alpha^2 + sigma^2 = 1.
    """

    alphas: Tensor
    sigmas: Tensor

    @property
    def log_snr(self) -> Tensor:
        """Log of alpha^2 / sigma^2 of each timestep, (T,), float32, never rising."""
        return 2 * (self.alphas.log() - self.sigmas.log())

    def to(self, device: torch.device | str) -> "Schedule":
        """The same schedule with its tables on `device`."""
        return Schedule(self.alphas.to(device), self.sigmas.to(device))

    def at(self, timesteps: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        """Look up alpha and sigma, shaped to multiply a batch.

        Args:
            timesteps: (B,), int64, in [0, T), on the schedule's device.
            ndim: Number of axes of the batch, B counted.

        Returns:
            alpha and sigma, each (B, 1, ..., 1) with `ndim` axes, float32.
        """
        shape = (-1,) + (1,) * (ndim - 1)
        return self.alphas[timesteps].view(shape), self.sigmas[timesteps].view(shape)


def build_schedule(config: DiffusionConfig) -> Schedule:
    """Build the tables of the forward process, on the CPU.

    Args:
        config: Reads `schedule`, `num_timesteps` and, for the two linear kinds, `beta_start` and
            `beta_end`.

    Returns:
        The schedule. Rounded to float32 only after the product over timesteps.

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
    alphas = (log_alphas_squared / 2).exp().float()
    sigmas = (-log_alphas_squared.expm1()).sqrt().float()
    if alphas[-1] == 0:
        raise UserError(
            f"diffusion.num_timesteps={config.num_timesteps}",
            "so many timesteps leave no signal that float32 can hold",
            "give fewer, or a smaller diffusion.beta_end",
        )
    return Schedule(alphas, sigmas)


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


def add_noise(schedule: Schedule, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Draw x_t given x_0: mix each sample with noise at its own timestep.

    Args:
        schedule: On the device of `latents`.
        latents: x_0, (B, ...), any float dtype.
        noise: epsilon, same shape.
        timesteps: (B,), int64, in [0, T).

    Returns:
        x_t, same shape, float32 or wider.

    Source: Ho et al. 2020, Eq. 4.
    """
    alpha, sigma = schedule.at(timesteps, latents.ndim)
    return alpha * latents + sigma * noise
