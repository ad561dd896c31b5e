"""Rules between settings. All of them run before anything is loaded, opened or started."""

from typing import Any

from conf.enums import EngineKind
from conf.errors import UserError
from conf.schema import (
    AutoencoderCommand,
    CacheCommand,
    DataConfig,
    EvaluateCommand,
    KLAutoencoderConfig,
    OpenMojiSource,
    SampleCommand,
    SamplerConfig,
    ShardCommand,
    TrainCommand,
    TrainedAutoencoderConfig,
)


def check(config: Any) -> None:
    """Check one command's configuration.

    Raises:
        UserError: The first rule that does not hold.
    """
    match config:
        case ShardCommand():
            _positive(config, "size", "shard_samples")
            if isinstance(config.source, OpenMojiSource):
                _share("source.held_out_share", config.source.held_out_share)
        case AutoencoderCommand():
            if not isinstance(config.autoencoder, KLAutoencoderConfig):
                raise UserError(
                    f"autoencoder={config.autoencoder.kind}",
                    "cannot be trained",
                    "choose a `kl` one",
                )
            _training(config)
        case CacheCommand():
            if not isinstance(config.autoencoder, TrainedAutoencoderConfig):
                raise UserError(
                    f"autoencoder={config.autoencoder.kind}",
                    "has no weights",
                    "give autoencoder=trained autoencoder.url=URL of an `ldm autoencoder` run",
                )
            _positive(config, "micro_batch_size")
            _data(config.data)
        case TrainCommand():
            _share("diffusion.caption_dropout", config.diffusion.caption_dropout)
            _training(config)
        case SampleCommand():
            _prompts(config.prompts)
            _sampler(config.sampler)
            _positive(config, "images_per_prompt")
        case EvaluateCommand():
            _positive(config, "draws")
            _data(config.data)


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


def _training(config: AutoencoderCommand | TrainCommand) -> None:
    _positive(config, "batch_size")
    if config.micro_batch_size is not None:
        _positive(config, "micro_batch_size")
    _data(config.data)
    if config.engine.kind is EngineKind.single and config.cluster.processes > 1:
        raise UserError(
            "engine=single",
            f"runs one rank, cluster.processes={config.cluster.processes} starts more",
            "choose engine=ddp, zero1 or zero2, or cluster.processes=1",
        )
    if config.cluster.kind != "local":
        raise UserError(f"cluster={config.cluster.kind}", "is not known", "choose cluster=local")
    for name, value in (
        ("train.samples", config.train.samples),
        ("cluster.processes", config.cluster.processes),
        ("checkpoint.every_samples", config.checkpoint.every_samples),
        ("checkpoint.keep_last", config.checkpoint.keep_last),
        ("tracking.log_every_samples", config.tracking.log_every_samples),
    ):
        _at_least_one(name, value)
    micro_batch(config.batch_size, config.micro_batch_size, config.cluster.processes)


def _data(config: DataConfig) -> None:
    _at_least_one("data.threads", config.threads)
    _at_least_one("data.block_shards", config.block_shards)


def _prompts(prompts: Any) -> None:
    texts = prompts if isinstance(prompts, list) else [prompts]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"prompts={prompts}",
            "is not text",
            "give a list, prompts=['red apple','a cat'], or the URL of a file",
        )


def _sampler(config: SamplerConfig) -> None:
    _at_least_one("sampler.steps", config.steps)
    _share("sampler.eta", config.eta)


def _positive(config: Any, *names: str) -> None:
    for name in names:
        _at_least_one(name, getattr(config, name))


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name}={value}", "is too small", "give 1 or more")


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{name}={value}", "is not a share", "give a number from 0 to 1")
