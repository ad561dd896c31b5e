"""The one distribution whose denoiser is known: a Gaussian."""

from dataclasses import dataclass

from torch import Tensor

from conf.enums import Prediction
from training.diffusion.schedule import Schedule


@dataclass
class Gaussian:
    """x_0 ~ N(mean, std^2) in every element; its denoiser is E[x_0 | x_t], Bayes' rule."""

    schedule: Schedule
    prediction: Prediction
    mean: float = 0.7
    std: float = 0.4

    def denoise(self, noisy: Tensor, timesteps: Tensor, condition: object) -> Tensor:
        alpha, sigma = (one.double() for one in self.schedule.at(timesteps, noisy.ndim))
        variance = alpha**2 * self.std**2 + sigma**2
        x0 = self.mean + alpha * self.std**2 / variance * (noisy - alpha * self.mean)
        epsilon = (noisy - alpha * x0) / sigma
        return {
            Prediction.epsilon: epsilon,
            Prediction.x0: x0,
            Prediction.velocity: alpha * epsilon - sigma * x0,
            Prediction.flow: epsilon - x0,
        }[self.prediction]

    def loss(self, timesteps: Tensor) -> Tensor:
        """Expected squared error of the exact denoiser: the posterior variance, rescaled."""
        alpha, sigma = (one.double() for one in self.schedule.at(timesteps, 1))
        of_x0 = self.std**2 * sigma**2 / (alpha**2 * self.std**2 + sigma**2)
        # An error d in x_0 is an error -alpha/sigma d in epsilon, -(alpha^2 + sigma^2) d/sigma in
        # velocity, and -(alpha + sigma) d/sigma in a flow.
        weight = {
            Prediction.epsilon: alpha**2 / sigma**2,
            Prediction.x0: 1,
            Prediction.velocity: (alpha**2 + sigma**2) ** 2 / sigma**2,
            Prediction.flow: (alpha + sigma) ** 2 / sigma**2,
        }[self.prediction]
        return of_x0 * weight
