"""What a sweep's trials are compared by: a figure that each leaves, and what decides its meaning.

Owns which command a sweep runs. Less is better, of every figure.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conf.compose import config_dict
from conf.errors import UserError
from data.storage import Prefix
from training.names import ENERGY, EVALUATION, VAL_LOSS
from training.tracking.files import METRICS, read_metrics

# Parts of the settings that decide what a validation loss is the loss of...
MEASURING = ("validation", "autoencoder", "text_encoder", "encoding", "diffusion")
# ... but for these, which only say how the denoiser is taught.
TEACHING = (
    *("weighting", "snr_gamma", "p2_gamma", "p2_k", "sigma_data", "sigmoid_bias"),
    *("timestep_draw", "logit_mean", "logit_std", "stratified"),
    *("offset_noise", "input_perturbation", "caption_dropout", "learned_variance"),
)
# What of an evaluation does not change what its energy score is the score of.
MAKING = ("sampler", "ema_length", "out", "cluster", "sweep")


@dataclass(frozen=True, slots=True)
class Measured:
    """What a trial has measured.

    Args:
        seen: Samples that it was trained on by then; 0 where it trains nothing.
        value: The figure.
        error: Its standard error, or None.
    """

    seen: int
    value: float
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Objective:
    """A kind of sweep.

    Args:
        command: That each trial runs, with the settings of the sweep's own command.
        mark: By which a sweep's folder is told from others.
        name: Of the figure.
        file: Of a trial's run, that tells it.
        every: Of the settings, after how many samples it is measured again.
        read: The figures that a run tells, in order of time.
        measured: The settings that decide what is measured, which may not vary.
        free: Settings that may change while a sweep goes on: where and how fast trials run.
        own: Settings that each trial is given by the sweep.
        require: Refuses settings by which nothing would be measured.
    """

    command: str
    mark: str
    name: str
    file: str
    every: Callable[[Any], int]
    read: Callable[[Prefix], list[Measured]]
    measured: Callable[[Any], dict[str, Any]]
    free: tuple[str, ...]
    own: tuple[str, ...]
    require: Callable[[Any], None]


def _losses(run: Prefix) -> list[Measured]:
    lines = [line for line in read_metrics(run) if VAL_LOSS in line]
    return [Measured(line["samples_seen"], line[VAL_LOSS]) for line in lines]


def _loss_settings(config: Any) -> dict[str, Any]:
    found = {k: v for k, v in config_dict(config).items() if k in MEASURING}
    found["diffusion"] = {k: v for k, v in found["diffusion"].items() if k not in TEACHING}
    return found


def _require_held_out(config: Any) -> None:
    if config.validation.url is None:
        wrong = "is missing, and trials are compared by the loss on held-out samples"
        raise UserError("validation.url", wrong, "give validation.url=URL of a held-out dataset")


def _energy(run: Prefix) -> list[Measured]:
    try:
        told = json.loads(run.read(EVALUATION))[ENERGY]
    except FileNotFoundError:
        return []
    return [Measured(0, told["mean"], told["error"])]


def _energy_settings(config: Any) -> dict[str, Any]:
    return {k: v for k, v in config_dict(config).items() if k not in MAKING}


def _require_images(config: Any) -> None:
    if not config.images_per_caption:
        wrong = "makes no images, by whose energy score trials are compared"
        raise UserError("images_per_caption=0", wrong, "give 2 or more")


TRAINING = Objective(
    command="train",
    mark="sweep",
    name=VAL_LOSS,
    file=METRICS,
    every=lambda config: int(config.validation.every_samples),
    read=_losses,
    measured=_loss_settings,
    free=("out", "cluster", "checkpoint", "tracking", "micro_batch_size", "guards", "sweep"),
    own=("out", "tracking.group", "tracking.tags"),
    require=_require_held_out,
)
EVALUATING = Objective(
    command="evaluate",
    mark="sweep of evaluate",
    name="energy score",
    file=EVALUATION,
    every=lambda config: 1,
    read=_energy,
    measured=_energy_settings,
    free=("out", "cluster", "sweep"),
    own=("out",),
    require=_require_images,
)
OBJECTIVES = (TRAINING, EVALUATING)
