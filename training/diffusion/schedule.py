"""The forward process: how much signal and how much noise each time holds.

Owns alpha and sigma and the mixing of latents with noise. Draws no noise and no times: both come
from the caller.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from conf.diffusion import DiffusionConfig
from training.diffusion.levels import build_alphas_and_sigmas, levels_of

# t in [0, 1], float64 -> alpha and sigma
Levels = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A forward process, x_t = alpha_t x_0 + sigma_t epsilon.

    Discrete processes have tables alone, and times are int64 timesteps in [0, T); timestep 0 is the
    least noisy, not the clean latent, which is outside the tables. Continuous ones also have levels
    at any t in [0, 1]; their times are float32, T t in [0, T], and row i of their tables is at
    t = (i + 1) / T.

    Attributes:
        alphas: Signal of each row, (T,), float32, in [0, 1], never rising.
        sigmas: Noise of each row, (T,), float32, in (0, 1].
        levels: Alpha and sigma at any t, or None for a discrete process.
    """

    alphas: Tensor
    sigmas: Tensor
    levels: Levels | None = None

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.alphas)

    @property
    def log_snr(self) -> Tensor:
        """Log of alpha^2 / sigma^2 of each row, (T,), float32, never rising; -inf at no signal."""
        return 2 * (self.alphas.log() - self.sigmas.log())

    @property
    def times(self) -> Tensor:
        """What the denoiser is told of each row, (T,)."""
        rows = torch.arange(self.num_timesteps, device=self.alphas.device)
        return rows if self.levels is None else (rows + 1).float()

    def times_at(self, t: Tensor) -> Tensor:
        """The times of draws t in [0, 1), (B,): int64 timesteps, or float32 where continuous."""
        scaled = t * self.num_timesteps
        if self.levels is not None:
            return scaled.float()
        return scaled.long().clamp(max=self.num_timesteps - 1)

    def to(self, device: torch.device | str) -> "Schedule":
        """The same schedule with its tables on `device`."""
        return replace(self, alphas=self.alphas.to(device), sigmas=self.sigmas.to(device))

    def at(self, times: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        """Alpha and sigma at some times, shaped to multiply a batch.

        Args:
            times: (B,), int64 in [0, T) or, where continuous, float32 in [0, T]; on the schedule's
                device.
            ndim: Number of axes of the batch, B counted.

        Returns:
            alpha and sigma, each (B, 1, ..., 1) with `ndim` axes, float32.
        """
        shape = (-1,) + (1,) * (ndim - 1)
        if self.levels is None:
            alpha, sigma = self.alphas[times], self.sigmas[times]
        else:
            alpha, sigma = self.levels(times.double() / self.num_timesteps)
        return alpha.to(self.alphas.dtype).view(shape), sigma.to(self.alphas.dtype).view(shape)


def build_schedule(config: DiffusionConfig) -> Schedule:
    """Build a forward process, on the CPU.

    Args:
        config: Reads `schedule` and the settings that shape it.

    Returns:
        The schedule. Rounded to float32 only after the product over timesteps.

    Raises:
        UserError: If a setting is out of its range, or float32 cannot hold the last alpha.
    """
    levels = levels_of(config)
    if levels is None:
        return Schedule(*build_alphas_and_sigmas(config))
    t = torch.arange(1, config.num_timesteps + 1, dtype=torch.float64) / config.num_timesteps
    alphas, sigmas = levels(t)
    return Schedule(alphas.float(), sigmas.float(), levels)


def add_noise(schedule: Schedule, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Draw x_t given x_0: mix each sample with noise at its own timestep.

    Args:
        schedule: On the device of `latents`.
        latents: x_0, (B, ...), any float dtype.
        noise: epsilon, same shape.
        timesteps: (B,), as `Schedule.at` takes them.

    Returns:
        x_t, same shape, float32 or wider.

    Source: Ho et al. 2020, Eq. 4.
    """
    alpha, sigma = schedule.at(timesteps, latents.ndim)
    return alpha * latents + sigma * noise
