"""The settings of the forward process, of the objective and of sampling. Imports no torch."""

from dataclasses import dataclass

from conf.enums import (
    Prediction,
    SamplerKind,
    ScheduleKind,
    TimestepDraw,
    Weighting,
)
from conf.fields import setting


@dataclass(kw_only=True, slots=True)
class DiffusionConfig:
    """The forward process, what the denoiser predicts, and how its errors count."""

    schedule: ScheduleKind = setting(
        "how noise grows: linear, scaled_linear or cosine (variance preserving), flow (a straight "
        "line from latents to noise) or ve (variance exploding)",
        ScheduleKind.scaled_linear,
    )
    continuous: bool = setting(
        "draw times between the timesteps too; flow and ve are always continuous", False
    )
    num_timesteps: int = setting(
        "timesteps of the discrete process; the denoiser is told a time in [0, num_timesteps)",
        1000,
        low=1,
    )
    beta_start: float = setting("first beta of the linear schedules", 0.00085, low=1e-09, high=1)
    beta_end: float = setting("last beta of the linear schedules", 0.012, low=1e-09, high=1)
    sigma_min: float = setting("least noise of schedule=ve", 0.002, low=1e-9)
    sigma_max: float = setting("most noise of schedule=ve", 80.0, low=1e-9)
    zero_terminal_snr: bool = setting(
        "rescale the discrete schedule so that the last timestep holds no signal; not with "
        "prediction=epsilon",
        False,
    )
    resolution_shift: float = setting(
        "multiply noise over signal of every time by this: the ratio of the image's side to the "
        "side that the schedule was made for; 1 is none",
        1.0,
        low=1e-3,
        high=1e3,
    )
    prediction: Prediction = setting(
        "what the denoiser predicts: epsilon, x0, velocity or flow (noise less latents)",
        Prediction.epsilon,
    )
    learned_variance: bool = setting(
        "have the denoiser give the variances of the reverse process too, for sampler.kind=ddpm in "
        "few steps; discrete schedules only",
        False,
    )
    weighting: Weighting = setting("how errors count by their noise", Weighting.uniform)
    snr_gamma: float = setting("gamma of weighting=min_snr and soft_min_snr", 5.0, low=1e-9)
    p2_gamma: float = setting("gamma of weighting=p2", 1.0, low=0)
    p2_k: float = setting("k of weighting=p2", 1.0, low=1e-9)
    sigma_data: float = setting(
        "standard deviation of the latents in weighting=edm; scaled latents have about 1",
        1.0,
        low=1e-9,
    )
    sigmoid_bias: float = setting("bias of weighting=sigmoid, in log SNR", -1.0, low=-100, high=100)
    timestep_draw: TimestepDraw = setting(
        "how times are drawn: uniform, or logit_normal (more in the middle)", TimestepDraw.uniform
    )
    logit_mean: float = setting("mean of timestep_draw=logit_normal", 0.0, low=-20, high=20)
    logit_std: float = setting("deviation of timestep_draw=logit_normal", 1.0, low=1e-3, high=20)
    stratified: bool = setting(
        "spread the draws of a global batch evenly, which makes the loss less noisy", True
    )
    offset_noise: float = setting(
        "strength of a noise added to whole channels, so that brightness is learned; 0 is off",
        0.0,
        low=0,
        high=10,
    )
    input_perturbation: float = setting(
        "strength of a noise added to the denoiser's input alone; 0 is off", 0.0, low=0, high=10
    )
    caption_dropout: float = setting(
        "share of captions replaced by the empty one in training", 0.1, low=0, high=1
    )


@dataclass(kw_only=True, slots=True)
class SamplerConfig:
    """From noise to latents."""

    kind: SamplerKind = setting("ddim or ddpm", SamplerKind.ddim)
    steps: int = setting("denoiser evaluations", 50, low=1)
    guidance_scale: float = setting("classifier-free guidance; 1 is none", 7.5, low=0)
    eta: float = setting("DDIM's noise: 0 is deterministic, 1 is DDPM's", 0.0, low=0, high=1)
