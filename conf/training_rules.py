"""Rules between the settings of training: batch, engine, objective, what is kept and watched."""

from conf.clusters import cluster_nodes
from conf.diffusion import DiffusionConfig
from conf.enums import EngineKind, OptimizerKind, Prediction, ScheduleKind
from conf.errors import UserError
from conf.groups import DataConfig
from conf.schema import AutoencoderCommand, PlanTrainCommand, TrainCommand
from conf.training import EngineConfig, GuardsConfig

LEAST_HANG = 2.0  # seconds


def micro_batch(batch_size: int, micro_batch_size: int | None, ranks: int) -> int:
    """The samples of one forward pass of a rank: the batch arithmetic in one place.

    `batch_size = micro_batch_size * ranks * accumulation_steps`.

    Raises:
        UserError: The ranks, or the ranks and the micro-batch, do not divide the batch.
    """
    micro = micro_batch_size or batch_size // ranks
    if micro < 1 or batch_size % (micro * ranks):
        each = f"{ranks} ranks" + (f" of {micro_batch_size} samples" if micro_batch_size else "")
        step = ranks * (micro_batch_size or 1)
        nearest = max(step, round(batch_size / step) * step)
        raise UserError(
            f"batch_size={batch_size}", f"cannot be divided by {each}", f"the nearest is {nearest}"
        )
    return micro


def check_training(config: AutoencoderCommand | TrainCommand) -> None:
    """Check the settings that both trainings share, and those of the denoiser.

    Raises:
        UserError: The first rule that does not hold.
    """
    _mixture(config.data)
    if len(config.optimizer.betas) != 2:
        raise UserError(
            f"optimizer.betas={config.optimizer.betas}", "are not two numbers", "give [0.9,0.999]"
        )
    ranks, where = ranks_of(config)
    if config.engine.kind is EngineKind.single and ranks > 1:
        raise UserError(
            "engine=single",
            f"runs one rank, {where}={ranks} starts more",
            f"choose engine=ddp, zero1, zero2 or zero3, or {where}=1",
        )
    _engine(config.engine)
    in_8_bits = config.optimizer.kind is OptimizerKind.adamw_8bit
    if in_8_bits and config.engine.kind not in (EngineKind.single, EngineKind.ddp):
        raise UserError(
            "optimizer.kind=adamw_8bit",
            f"does not go with engine={config.engine.kind.value}, which cuts moments into shares",
            "choose engine=ddp, or optimizer.kind=adamw",
        )
    _guards(config.guards)
    _kept(config)
    micro_batch(config.batch_size, config.micro_batch_size, ranks)
    if isinstance(config, TrainCommand):
        _diffusion(config.diffusion)
        _validation(config)


def ranks_of(config: AutoencoderCommand | TrainCommand) -> tuple[int, str]:
    """The ranks that a training is started on, or planned for, and the settings that say so."""
    processes, nodes = config.cluster.processes, cluster_nodes(config.cluster)
    if isinstance(config, PlanTrainCommand) and (config.plan.gpus or config.plan.nodes > 1):
        return config.plan.nodes * (config.plan.gpus or processes), "plan.nodes*plan.gpus"
    if nodes > 1:
        return nodes * processes, "cluster.nodes*cluster.processes"
    return processes, "cluster.processes"


def _engine(config: EngineConfig) -> None:
    kind, zero = config.kind, (EngineKind.zero1, EngineKind.zero2, EngineKind.zero3)
    refused = {
        "offload_optimizer": (
            kind not in zero,
            "needs an optimizer in shares",
            "choose engine=zero1, zero2 or zero3",
        ),
        "offload_parameters": (
            kind is not EngineKind.zero3,
            "needs shares of the weights",
            "choose engine=zero3",
        ),
        "compile": (
            kind is EngineKind.zero3,
            "does not go with engine=zero3, which sends for weights layer by layer",
            "choose engine=zero2, or leave it out",
        ),
    }
    for name, (wrong_here, wrong, remedy) in refused.items():
        if getattr(config, name) and wrong_here:
            raise UserError(f"engine.{name}=true", wrong, remedy)


def _guards(config: GuardsConfig) -> None:
    if 0 < config.hang_seconds < LEAST_HANG:
        raise UserError(
            f"guards.hang_seconds={config.hang_seconds:g}",
            "is too short to tell a rank that hangs from one that is busy",
            f"give {LEAST_HANG:g} or more, or 0 for never",
        )


def _kept(config: AutoencoderCommand | TrainCommand) -> None:
    """Averages and checkpoints that nothing would come of."""
    lengths, best = config.train.ema_lengths, config.checkpoint.keep_best
    if len(set(lengths)) < len(lengths):
        raise UserError(f"train.ema_lengths={lengths}", "names one twice", "name each length once")
    if lengths and not isinstance(config, TrainCommand):
        raise UserError(
            f"train.ema_lengths={lengths}", "is of use to a denoiser only", "leave it out"
        )
    if best and not (isinstance(config, TrainCommand) and config.validation.url):
        raise UserError(
            f"checkpoint.keep_best={best}",
            "goes by the validation loss, and nothing is validated",
            "give `ldm train` a validation.url, or leave it out",
        )


def _diffusion(config: DiffusionConfig) -> None:
    ends_without_signal = config.zero_terminal_snr or config.schedule is ScheduleKind.flow
    if ends_without_signal and config.prediction is Prediction.epsilon:
        cause = "zero_terminal_snr=true" if config.zero_terminal_snr else "schedule=flow"
        raise UserError(
            "diffusion.prediction=epsilon",
            f"says nothing where there is noise alone, as at the end with diffusion.{cause}",
            "choose diffusion.prediction=velocity, flow or x0",
        )
    always = (ScheduleKind.flow, ScheduleKind.ve)
    if config.zero_terminal_snr and (config.continuous or config.schedule in always):
        raise UserError(
            "diffusion.zero_terminal_snr=true",
            "is for discrete schedules",
            "leave it out, or choose diffusion.schedule=linear, scaled_linear or cosine",
        )
    if config.learned_variance:
        _learned_variance(config)
    if config.schedule is ScheduleKind.ve and config.sigma_min >= config.sigma_max:
        raise UserError(
            f"diffusion.sigma_min={config.sigma_min}",
            f"is not below diffusion.sigma_max={config.sigma_max}",
            "give a smaller one",
        )


def _learned_variance(config: DiffusionConfig) -> None:
    """Refuse what leaves a step of the reverse process without the two bounds of its variance."""
    refused = {
        "schedule": config.schedule in (ScheduleKind.flow, ScheduleKind.ve),
        "continuous": config.continuous,
        "num_timesteps": config.num_timesteps < 2,
        "offset_noise": config.offset_noise > 0,
    }
    remedies = {
        "schedule": "choose diffusion.schedule=linear, scaled_linear or cosine",
        "num_timesteps": "give 2 or more",
    }
    for name in (name for name, is_refused in refused.items() if is_refused):
        value = getattr(config, name)
        raise UserError(
            "diffusion.learned_variance=true",
            f"does not go with diffusion.{name}={str(getattr(value, 'value', value)).lower()}: it "
            "lies between two bounds that follow from discrete steps of independent noise",
            f"{remedies.get(name, f'leave out diffusion.{name}')}, or leave it out",
        )


def _validation(config: TrainCommand) -> None:
    validation = config.validation
    if validation.url in (config.data.url, *config.data.also):
        raise UserError(
            f"validation.url={validation.url}", "is trained on", "give a dataset that is held out"
        )
    if not all(prompt.strip() for prompt in validation.prompts):
        raise UserError(
            f"validation.prompts={validation.prompts}", "has an empty one", "give each some text"
        )
    steps, most = validation.sampler.steps, config.diffusion.num_timesteps
    if validation.prompts and steps > most:
        raise UserError(
            f"validation.sampler.steps={steps}",
            f"the denoiser is trained on {most} timesteps",
            f"give 1 to {most}",
        )


def _mixture(config: DataConfig) -> None:
    urls = [config.url, *config.also]
    if len(set(urls)) != len(urls):
        raise UserError(
            f"data.also={config.also}",
            "names a dataset twice",
            "name each once, and weigh it with data.weights",
        )
    if config.weights is not None and len(config.weights) != len(urls):
        raise UserError(
            f"data.weights={config.weights}",
            f"does not weigh the {len(urls)} datasets",
            "give one number for data.url and one for each of data.also",
        )
