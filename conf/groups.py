"""The groups of settings: each with its type, default, bounds and meaning.

Groups with several choices have a base class and a subclass a choice, told apart by `kind`. Imports no torch.
"""

from dataclasses import dataclass

from conf.enums import Split, TrackingKind
from conf.fields import setting


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """Where image-caption pairs come from."""

    kind: str = setting("which source this is")


@dataclass(kw_only=True, slots=True)
class OpenMojiSource(SourceConfig):
    """OpenMoji's colour emoji, rasterised; captions are the names of the `emoji` package."""

    kind: str = setting("which source this is", "openmoji")
    split: Split = setting(
        "train, held_out (no emoji of it, in any skin tone, is in train) or all", Split.all
    )
    held_out_share: float = setting(
        "share of the emoji that are held out, skin tones counted as one", 0.1, low=0, high=1
    )


@dataclass(kw_only=True, slots=True)
class FolderSource(SourceConfig):
    """A folder of images with captions in .txt or .json files of the same name beside them."""

    kind: str = setting("which source this is", "folder")
    path: str = setting("URL of the folder; read with its subfolders")
    caption_field: str | None = setting(
        "field of the json that holds the caption, whatever a .txt says; null takes captions from "
        ".txt, and where there is none from the json's field caption",
        None,
    )


@dataclass(kw_only=True, slots=True)
class TableSource(SourceConfig):
    """A table of images and captions: .csv, .tsv, .jsonl or .parquet."""

    kind: str = setting("which source this is", "table")
    path: str = setting("URL of the table")
    image_column: str = setting(
        "column of the images: paths relative to the table, URLs, or in a .parquet the files' bytes",
        "image",
    )
    caption_columns: list[str] = setting(
        "columns of the captions; a row's is drawn from those that it has", ["caption"]
    )
    caption_weights: list[float] | None = setting(
        "how often each caption column is drawn, by the row's number alone; null is equally often",
        None,
        low=0,
    )


@dataclass(kw_only=True, slots=True)
class WebDatasetSource(SourceConfig):
    """WebDataset tars as img2dataset makes them: KEY.jpg, png or webp, KEY.txt and perhaps KEY.json."""

    kind: str = setting("which source this is", "webdataset")
    path: str = setting("URL of the prefix of the .tar files; read with its subfolders")
    caption_field: str | None = setting(
        "field of the json that holds the caption; null takes captions from .txt", None
    )
    in_place: bool = setting(
        "leave the tars where they are and write only an index of them; images are then brought to "
        "their size whenever they are read",
        False,
    )
    check: bool = setting(
        "with in_place, decode every image instead of its header alone, and skip the bad ones",
        False,
    )


@dataclass(kw_only=True, slots=True)
class FilterConfig:
    """Which of a source's samples are left out; none unless told."""

    min_side: int = setting("least pixels of an image's smaller side; 0 is any", 0, low=0)
    max_aspect: float | None = setting(
        "most that the longer side may be, in multiples of the smaller; null is any", None, low=1
    )
    fields: list[str] = setting(
        "bounds on numbers in the samples' json or table, as \"['aesthetic>=5','punsafe<=0.1']\"; "
        "a sample without the number is left out",
        [],
    )


@dataclass(kw_only=True, slots=True)
class BucketsConfig:
    """Image sizes of several aspect ratios and about one area, in place of squares alone."""

    max_aspect: float = setting(
        "most that a bucket's longer side may be, in multiples of the shorter; 1 is squares alone",
        1.0,
        low=1,
    )
    step: int = setting("what every side of a bucket is a multiple of, in pixels", 64, low=1)


@dataclass(kw_only=True, slots=True)
class UNetConfig:
    """The denoiser: the text-conditional UNet of Rombach et al. 2022."""

    channels: int = setting("channels of the first level", 320, low=1)
    channel_mult: list[int] = setting(
        "channels of each level, in multiples of the first", [1, 2, 4, 4], low=1
    )
    res_blocks: int = setting(
        "residual blocks a level on the way down; one more on the way up", 2, low=1
    )
    attention_levels: list[int] = setting(
        "levels, from 0, that have self- and cross-attention", [0, 1, 2], low=0
    )
    transformer_depth: int = setting("transformer blocks after each residual block", 1, low=1)
    head_channels: int = setting("channels of one attention head", 64, low=1)
    heads: int | None = setting(
        "attention heads, the same number at every level, as Stable Diffusion 1 has them; null is by "
        "head_channels",
        None,
        low=1,
    )
    norm_groups: int = setting("groups of every GroupNorm", 32, low=1)
    dropout: float = setting("dropout in the residual blocks", 0.0, low=0, high=0.99)
    pooled_text: bool = setting(
        "add the mean of the text embeddings to the timestep embedding", False
    )
    class_width: int = setting(
        "width of the vector that is learned for each class, where captions are classes", 512, low=1
    )


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Where the command runs."""

    kind: str = setting("which cluster this is", "local")
    processes: int = setting("ranks to start on each machine", 1, low=1)
    port: int = setting(
        "port at which ranks meet; 0 is a free one or, with several machines, 29400 or under Slurm "
        "one by the job's number",
        0,
        low=0,
        high=65535,
    )
    minutes: float | None = setting(
        "training saves a checkpoint and stops with exit code 75 before its process is so old; null is "
        "no limit",
        None,
        low=0.05,
    )


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """The record in Weights & Biases."""

    kind: TrackingKind = setting(
        "offline writes a W&B run to disk, online sends it, off leaves only metrics.jsonl",
        TrackingKind.offline,
    )
    project: str = setting("W&B project", "latent-foundry")
    group: str | None = setting("W&B group of the run; null is none", None)
    tags: list[str] = setting("W&B tags of the run", [])
    key_file: str | None = setting(
        "text file with the W&B key; null takes WANDB_API_KEY, or what `wandb login` has kept", None
    )
    wandb_seconds: float = setting(
        "how long W&B may take to answer at the start, where the run is then kept offline, and to take "
        "what is left at the end; training waits only for the latter",
        60.0,
        low=1,
    )


@dataclass(kw_only=True, slots=True)
class MetricsConfig(TrackingConfig):
    """The record of a training: metrics.jsonl always, Weights & Biases beside it."""

    log_every_samples: int = setting("samples between two lines of metrics", 1000, low=1)
    tensorboard: bool = setting("write TensorBoard events to out/tensorboard too", False)
    histograms_every_samples: int = setting(
        "samples between two histograms of every weight, for TensorBoard and W&B; 0 is none",
        0,
        low=0,
    )
    stall_seconds: float = setting(
        "an alert is sent when nothing has got on for so long; 0 is never", 300.0, low=0
    )


@dataclass(kw_only=True, slots=True)
class DatasetConfig:
    """A dataset that a command reads."""

    url: str = setting("URL of the dataset")


@dataclass(kw_only=True, slots=True)
class ReadingConfig(DatasetConfig):
    """A dataset that is read while something is computed."""

    threads: int = setting(
        "reading threads of a rank, at least 8 where every sample is a request; 0 reads in the main "
        "thread, between steps",
        2,
        low=0,
        high=64,
    )
    memory_gb: float = setting(
        "most that whole shards of remote datasets take in memory, in GB, where one process reads "
        "all of them and there is no local cache; else every sample is a request of its own",
        6.0,
        low=0,
    )


@dataclass(kw_only=True, slots=True)
class DataConfig(ReadingConfig):
    """A dataset that is trained on, in an order of its own every epoch."""

    seed: int = setting("seed of the order of samples", 0, low=0, high=4611686018427387904)
    block_shards: int = setting("shards whose samples are shuffled together", 16, low=1, high=32)
    also: list[str] = setting("URLs of more datasets, mixed with the first", [])
    weights: list[float] | None = setting(
        "share of samples from each dataset, that of data.url first; null is by their sizes",
        None,
        low=1e-9,
    )
    local_cache: str | None = setting(
        "folder on a local disk that keeps shards of remote datasets, shared by all processes of "
        "the machine; null reads through memory",
        None,
    )
    local_cache_gb: float = setting("most that the local cache holds, in GB", 100.0, low=0.001)


@dataclass(kw_only=True, slots=True)
class ImageDataConfig(DataConfig):
    """A dataset of images that is trained on."""

    max_bad_share: float = setting(
        "share of images that may be impossible to decode: others are read in their place, and "
        "they are named; more stop the run",
        0.0,
        low=0,
        high=1,
    )


@dataclass(kw_only=True, slots=True)
class TrainDataConfig(ImageDataConfig):
    """A dataset of latents, or of images, that the denoiser is trained on."""

    incomplete: bool = setting(
        "train on latents of which some samples are missing because their images were bad", False
    )
    check_origins: bool = setting(
        "refuse latents whose images, autoencoder or text encoder are still where they were but are "
        "no longer what they were",
        True,
    )
    statistics_samples: int = setting(
        "with images, of how many samples at most the latents' scale is measured", 4096, low=1
    )
