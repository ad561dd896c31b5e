"""The commands: every setting of each, put together from the groups of `conf.groups`.

YAML files hold values only; a key that is not here is refused when the configuration is composed. Imports no torch.
"""

from dataclasses import dataclass
from typing import Any

from conf.clusters import KubernetesCluster, LocalCluster, SkyPilotCluster, SlurmCluster
from conf.diffusion import DiffusionConfig, SamplerConfig
from conf.encoders import (
    AutoencoderConfig,
    KLAutoencoderConfig,
    PretrainedAutoencoderConfig,
    TextEncoderConfig,
    TrainedAutoencoderConfig,
)
from conf.encoding import EncodingConfig
from conf.enums import Crop, DemoRecipe, ImageFormat
from conf.fields import group, group_or_none, setting
from conf.groups import (
    BucketsConfig,
    ClusterConfig,
    DatasetConfig,
    FilterConfig,
    FolderSource,
    ImageDataConfig,
    MetricsConfig,
    OpenMojiSource,
    ReadingConfig,
    SourceConfig,
    TableSource,
    TrackingConfig,
    TrainDataConfig,
    UNetConfig,
    WebDatasetSource,
)
from conf.plan import PlanConfig, PlanTrainConfig
from conf.sweeping import SweepConfig, SweepTrainConfig
from conf.training import (
    CheckpointConfig,
    EngineConfig,
    GuardsConfig,
    OptimizerConfig,
    TrainingConfig,
    ValidationConfig,
)


@dataclass(kw_only=True, slots=True)
class ShardCommand:
    """Turn a source of image-caption pairs into a dataset of WebDataset shards."""

    out: str = setting("URL of the dataset to write")
    source: SourceConfig = group(SourceConfig, "where the pairs come from")
    size: int = setting(
        "side of the square images in pixels; with buckets, the side of a square of their area",
        64,
        low=1,
    )
    buckets: BucketsConfig = group(BucketsConfig, "image sizes of other aspect ratios")
    crop: Crop = setting(
        "what is kept of an image that is longer than its size: the center, or a random part",
        Crop.center,
    )
    seed: int = setting(
        "seed of the random crops, which depend on it and the sample's key alone",
        0,
        low=0,
        high=4611686018427387904,
    )
    format: ImageFormat = setting(
        "png (lossless), jpeg (no chroma subsampling) or webp", ImageFormat.png
    )
    quality: int | None = setting(
        "of jpeg and webp; webp is lossless at 100; null is 95", None, low=1, high=100
    )
    shard_samples: int = setting(
        "samples a shard; those that are left out or skipped make it smaller", 512, low=1
    )
    filter: FilterConfig = group(FilterConfig, "which samples are left out")
    max_bad_share: float = setting(
        "share of the samples that may be bad: up to it they are skipped, counted and listed in "
        "skipped.json, above it the command stops; 0 stops at the first",
        0.0,
        low=0,
        high=1,
    )
    processes: int = setting("shards made at the same time; 0 is one a core", 0, low=0)
    rank: int | None = setting(
        "number of this process among those that make the dataset together; null is RANK or "
        "SLURM_PROCID, or 0",
        None,
        low=0,
    )
    world_size: int | None = setting(
        "how many processes make the dataset together; null is WORLD_SIZE or SLURM_NTASKS, or 1",
        None,
        low=1,
    )
    cluster: ClusterConfig = group(ClusterConfig, "where it runs")


@dataclass(kw_only=True, slots=True)
class AutoencoderCommand:
    """Train stage one on a dataset of images."""

    out: str = setting("URL of the run to write")
    data: ImageDataConfig = group(ImageDataConfig, "the dataset of images")
    autoencoder: AutoencoderConfig = group(AutoencoderConfig, "the model")
    kl_weight: float = setting("weight of the KL term against the reconstruction", 1e-6, low=0)
    train: TrainingConfig = group(TrainingConfig, "length and seed")
    batch_size: int = setting("samples of one optimizer step, over all ranks", 64, low=1)
    micro_batch_size: int | None = setting(
        "samples of one forward pass of a rank; null is batch_size over ranks", None, low=1
    )
    optimizer: OptimizerConfig = group(OptimizerConfig, "AdamW")
    engine: EngineConfig = group(EngineConfig, "ranks and precision")
    cluster: ClusterConfig = group(ClusterConfig, "where it runs")
    checkpoint: CheckpointConfig = group(CheckpointConfig, "when state is kept")
    guards: GuardsConfig = group(GuardsConfig, "what is watched")
    tracking: MetricsConfig = group(MetricsConfig, "the record")


@dataclass(kw_only=True, slots=True)
class CacheCommand:
    """Encode a dataset of images to a dataset of latents and text embeddings."""

    out: str = setting("URL of the dataset to write")
    data: ReadingConfig = group(ReadingConfig, "the dataset of images")
    autoencoder: AutoencoderConfig = group(AutoencoderConfig, "the autoencoder")
    text_encoder: TextEncoderConfig = group(TextEncoderConfig, "the text encoder")
    encoding: EncodingConfig = group(EncodingConfig, "what is kept, and in which numbers")
    sizes: list[int] = setting(
        "sides of squares whose area images are brought to, each to a dataset out/SIDE of its own; "
        "none keeps the dataset's sizes and writes to out",
        [],
        low=1,
    )
    beside: bool = setting(
        "write to a folder of out that is named by all that decides the cache, so that other settings "
        "or images make another cache beside it",
        False,
    )
    deduplicate: bool = setting(
        "store equal captions of a shard once; stock WebDataset then finds only the first", False
    )
    micro_batch_size: int | None = setting(
        "images encoded at once; null is as many as have two million pixels, 64 at most",
        None,
        low=1,
    )
    max_bad_share: float = setting(
        "share of the images that may be impossible to decode: up to it they are skipped, counted "
        "and listed in skipped.json, above it the command stops; 0 stops at the first",
        0.0,
        low=0,
        high=1,
    )
    rank: int | None = setting(
        "number of this process among those that make the cache together; null is RANK or "
        "SLURM_PROCID, or 0",
        None,
        low=0,
    )
    world_size: int | None = setting(
        "how many processes make the cache together; null is WORLD_SIZE or SLURM_NTASKS, or 1",
        None,
        low=1,
    )
    cluster: ClusterConfig = group(ClusterConfig, "where it runs")


@dataclass(kw_only=True, slots=True)
class TrainCommand:
    """Train the denoiser on a dataset of latents, or of images, which are encoded as it goes."""

    out: str = setting("URL of the run to write")
    data: TrainDataConfig = group(TrainDataConfig, "the dataset of latents or of images")
    autoencoder: AutoencoderConfig | None = group_or_none(
        "what encodes images; with latents, what they have to be made with; null takes the "
        "dataset's word for it"
    )
    text_encoder: TextEncoderConfig | None = group_or_none("the same for captions")
    encoding: EncodingConfig = group(EncodingConfig, "what is kept of images, if they are encoded")
    unet: UNetConfig = group(UNetConfig, "the denoiser")
    diffusion: DiffusionConfig = group(DiffusionConfig, "the forward process")
    start_from: str | None = setting(
        "URL of an `ldm train` run whose averaged weights this one starts with, such as one of a "
        "lower resolution; null is fresh weights",
        None,
    )
    train: TrainingConfig = group(TrainingConfig, "length and seed")
    batch_size: int = setting("samples of one optimizer step, over all ranks", 256, low=1)
    micro_batch_size: int | None = setting(
        "samples of one forward pass of a rank; null is batch_size over ranks", None, low=1
    )
    optimizer: OptimizerConfig = group(OptimizerConfig, "AdamW")
    engine: EngineConfig = group(EngineConfig, "ranks and precision")
    cluster: ClusterConfig = group(ClusterConfig, "where it runs")
    checkpoint: CheckpointConfig = group(CheckpointConfig, "when state is kept")
    guards: GuardsConfig = group(GuardsConfig, "what is watched")
    validation: ValidationConfig = group(ValidationConfig, "what is measured on the way")
    tracking: MetricsConfig = group(MetricsConfig, "the record")


@dataclass(kw_only=True, slots=True)
class SampleCommand:
    """Turn prompts into images."""

    checkpoint: str = setting("URL of an `ldm train` run")
    ema_length: float | None = setting(
        "take the average of this length, rebuilt from what the run kept for train.ema_lengths; "
        "null takes the run's own",
        None,
        low=0.01,
        high=0.28,
    )
    autoencoder: AutoencoderConfig | None = group_or_none(
        "the autoencoder, if it is no longer where the run found it"
    )
    text_encoder: TextEncoderConfig | None = group_or_none("the same for the text encoder")
    prompts: Any = setting(
        "a list ['red apple','a cat'], or the URL of a text file with a prompt a line"
    )
    out: str = setting("URL of the folder for grid.png and one PNG an image")
    sampler: SamplerConfig = group(SamplerConfig, "how to sample")
    images_per_prompt: int = setting("images of each prompt", 1, low=1)
    seed: int = setting("seed of the noise", 0, low=0, high=4611686018427387904)
    cluster: ClusterConfig = group(ClusterConfig, "where it runs")


@dataclass(kw_only=True, slots=True)
class EvaluateCommand:
    """Measure a run on images that it was not trained on."""

    checkpoint: str = setting("URL of an `ldm train` run")
    ema_length: float | None = setting(
        "take the average of this length, rebuilt from what the run kept for train.ema_lengths; "
        "null takes the run's own",
        None,
        low=0.01,
        high=0.28,
    )
    autoencoder: AutoencoderConfig | None = group_or_none(
        "the autoencoder, if it is no longer where the run found it"
    )
    text_encoder: TextEncoderConfig | None = group_or_none("the same for the text encoder")
    data: ReadingConfig = group(ReadingConfig, "the dataset of held-out images")
    out: str = setting("URL of the folder for evaluation.json and reconstructions.png")
    samples: int = setting("images to use; 0 is all", 0, low=0)
    draws: int = setting("noise and timestep draws an image, stratified over timesteps", 4, low=1)
    images_per_caption: int = setting(
        "images made of each caption for the energy score, 2 or more; 0 makes none", 0, low=0
    )
    sampler: SamplerConfig = group(SamplerConfig, "how those images are made")
    seed: int = setting("seed of noise and timesteps", 0, low=0, high=4611686018427387904)
    cluster: ClusterConfig = group(ClusterConfig, "where it runs")


@dataclass(kw_only=True, slots=True)
class ReportCommand:
    """Show a run or a sweep as one HTML page and one picture."""

    run: str = setting("URL of an `ldm train` run, or of a sweep")
    tracking: TrackingConfig = group(TrackingConfig, "the record")


@dataclass(kw_only=True, slots=True)
class VerifyCommand:
    """Read a dataset end to end against its manifest and name what is broken."""

    data: DatasetConfig = group(DatasetConfig, "the dataset")
    samples: int = setting(
        "samples to draw over all shards, read and decode; 0 reads every byte", 0, low=0
    )
    seed: int = setting("seed of that draw", 0, low=0, high=4611686018427387904)
    decode: bool = setting("whether every sample is also decoded, when every byte is read", False)
    threads: int = setting("shards read at the same time by a rank", 4, low=1, high=64)
    audit: int = setting(
        "samples of a dataset of latents that are also encoded again from their images, compared, "
        "decoded, and shown beside their images in out/audit.png",
        0,
        low=0,
    )
    images: str | None = setting(
        "with audit, URL of the images if they are no longer where they were cached from", None
    )
    autoencoder: AutoencoderConfig | None = group_or_none(
        "with audit, the autoencoder, if it is no longer where the cache found it"
    )
    text_encoder: TextEncoderConfig | None = group_or_none("the same for the text encoder")
    out: str | None = setting(
        "URL of a folder for broken.json, audit.json, audit.png and a record of every whole shard, "
        "which a rerun skips; null writes nothing",
        None,
    )


@dataclass(kw_only=True, slots=True)
class StatusCommand:
    """Tell what has become of a submitted job."""

    job: str = setting("what submitting it printed, as slurm:123")


@dataclass(kw_only=True, slots=True)
class LogsCommand:
    """Show the end of a submitted job's log."""

    job: str = setting("what submitting it printed, as slurm:123")
    lines: int = setting("lines to show", 100, low=1)


@dataclass(kw_only=True, slots=True)
class StopCommand:
    """End a submitted job for good, with its state saved (SkyPilot: as of the last checkpoint)."""

    job: str = setting("what submitting it printed, as slurm:123")


@dataclass(kw_only=True, slots=True)
class DemoCommand:
    """Run every stage on OpenMoji's emoji, offline, on a CPU."""

    out: str = setting("folder for everything that the demo makes", "demo")
    recipe: DemoRecipe = setting(
        "emoji: ten minutes on two cores; emoji_hour: an hour; emoji_tiny: a check of the machinery",
        DemoRecipe.emoji,
    )
    processes: int = setting("ranks that train the denoiser", 2, low=1)


@dataclass(kw_only=True, slots=True)
class PlanTrainCommand(TrainCommand):
    """Tell what `ldm train` with the same settings would take, and refuse what cannot run."""

    plan: PlanTrainConfig = group(PlanTrainConfig, "what it is planned for")


@dataclass(kw_only=True, slots=True)
class PlanCacheCommand(CacheCommand):
    """Tell what `ldm cache` with the same settings would take."""

    plan: PlanConfig = group(PlanConfig, "what it is planned for")


@dataclass(kw_only=True, slots=True)
class SweepTrainCommand(TrainCommand):
    """Train once for each of several choices of settings, and find the best."""

    sweep: SweepTrainConfig = group(SweepTrainConfig, "which trials, and how they are run")


@dataclass(kw_only=True, slots=True)
class SweepEvaluateCommand(EvaluateCommand):
    """Evaluate a run once for each of several choices of its sampler, and find the best."""

    sweep: SweepConfig = group(SweepConfig, "which trials, and how they are run")


COMMANDS: dict[str, type] = {
    "demo": DemoCommand,
    "shard": ShardCommand,
    "verify": VerifyCommand,
    "autoencoder": AutoencoderCommand,
    "cache": CacheCommand,
    "train": TrainCommand,
    "train -m": SweepTrainCommand,
    "sample": SampleCommand,
    "evaluate": EvaluateCommand,
    "evaluate -m": SweepEvaluateCommand,
    "report": ReportCommand,
    "status": StatusCommand,
    "logs": LogsCommand,
    "stop": StopCommand,
    "plan train": PlanTrainCommand,
    "plan cache": PlanCacheCommand,
}

CHOICES: dict[str, dict[str, type]] = {
    "source": {
        "openmoji": OpenMojiSource,
        "folder": FolderSource,
        "table": TableSource,
        "webdataset": WebDatasetSource,
    },
    "autoencoder": {
        "kl": KLAutoencoderConfig,
        "trained": TrainedAutoencoderConfig,
        "pretrained": PretrainedAutoencoderConfig,
    },
    "cluster": {
        "local": LocalCluster,
        "slurm": SlurmCluster,
        "kubernetes": KubernetesCluster,
        "skypilot": SkyPilotCluster,
    },
}
