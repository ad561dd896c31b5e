"""The settings of a plan: machines, what is assumed of them, sizes that nothing else tells."""

from dataclasses import dataclass

from conf.fields import setting


@dataclass(kw_only=True, slots=True)
class PlanConfig:
    """What a command is planned for, and all that `plan cache` asks of it."""

    gpu: str | None = setting(
        "name of the GPU, such as H100, L40S or A100-80GB; null is this machine", None
    )
    gpus: int | None = setting("ranks of a node; null is cluster.processes", None, low=1)
    nodes: int = setting("nodes", 1, low=1)
    dollars_per_gpu_hour: float | None = setting(
        "price of a GPU for an hour; null tells no cost", None, low=0
    )
    mfu: float = setting(
        "share of the peak that the model's FLOPs will have: an assumption, not a measurement",
        0.3,
        low=0.001,
        high=1,
    )
    like: str | None = setting(
        "URL of an `ldm train` run whose measured MFU is taken in the place of plan.mfu", None
    )
    samples: int | None = setting(
        "samples of a dataset that cannot be read yet; null is not known", None, low=1
    )
    image_size: int = setting("of such a dataset: side of the images in pixels", 512, low=1)
    latent_channels: int = setting("of such a dataset: channels of a latent", 4, low=1)
    text_width: int = setting("of such a dataset: channels of a text embedding", 1024, low=1)
    text_tokens: int = setting("of such a dataset: tokens of a caption", 77, low=1)
    json: bool = setting("print the plan as JSON", False)


@dataclass(kw_only=True, slots=True)
class PlanTrainConfig(PlanConfig):
    """What a training is planned for."""

    reserve_gb: float = setting(
        "GB of a rank's memory that are left for libraries, workspaces and fragments", 2.0, low=0
    )
    store_mb_s: float = setting(
        "MB of a checkpoint that each rank writes in a second: an assumption", 200.0, low=0.001
    )
    downsampling: int = setting(
        "of a dataset that cannot be read yet: pixels to a side of a latent's place", 8, low=1
    )
    classes: int = setting(
        "of such a dataset: classes in the place of captions; 0 is captions", 0, low=0
    )
