"""How a denoiser's error counts at each noise.

Each weighting is defined on the error of x_0 and converted to that of what is predicted, so that it
means the same whatever the denoiser predicts.
"""

from torch import Tensor

from conf.diffusion import DiffusionConfig
from conf.enums import Weighting
from training.diffusion.prediction import x0_error_per_output_error

LEAST_SIGMA = 1e-5  # without noise, SNR has no bound


def loss_weights(config: DiffusionConfig, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Weights of the squared error of a denoiser's output.

    Args:
        config: Reads `weighting`, its settings, and `prediction`.
        alpha: Signal of each sample, (B,), in [0, 1].
        sigma: Noise of each sample, (B,).

    Returns:
        (B,), float32, at least 0. Uniform is 1 for whatever is predicted.
    """
    if config.weighting is Weighting.uniform:
        return alpha.new_ones(alpha.shape)
    alpha, sigma = alpha.double(), sigma.double().clamp(min=LEAST_SIGMA)
    factor = x0_error_per_output_error(config.prediction, alpha, sigma)
    return (x0_weights(config, (alpha / sigma) ** 2) * factor).float()


def x0_weights(config: DiffusionConfig, snr: Tensor) -> Tensor:
    """Weights of the squared error of x_0 by signal-to-noise ratio; not for uniform.

    Source: min_snr: Hang et al. 2023, min(SNR, gamma). soft_min_snr: Crowson et al. 2024, which
    joins the two sides smoothly. p2: Choi et al. 2022, 1 / (k + SNR)^gamma on the error of epsilon.
    edm: Karras et al. 2022, Table 1, lambda(sigma) at sigma = 1 / sqrt(SNR). sigmoid: the w of
    Kingma & Gao 2023 on the error of epsilon, over times as they are drawn: the slope of log SNR,
    which would undo the choice of a schedule, is left out.
    """
    gamma = config.snr_gamma
    if config.weighting is Weighting.min_snr:
        return snr.clamp(max=gamma)
    if config.weighting is Weighting.soft_min_snr:
        return snr * gamma / (snr + gamma)
    if config.weighting is Weighting.p2:
        return snr / (config.p2_k + snr) ** config.p2_gamma
    if config.weighting is Weighting.edm:
        return snr + config.sigma_data**-2
    return snr * (config.sigmoid_bias - snr.log()).sigmoid()
