"""The closed sets of values that a setting can have."""

from enum import Enum


class Split(Enum):
    """Which part of a source a dataset is made of."""

    all = "all"
    train = "train"
    held_out = "held_out"


class Crop(Enum):
    """What is kept of an image that is longer than its target."""

    center = "center"
    random = "random"


class ImageFormat(Enum):
    """In what the images of a dataset are stored."""

    png = "png"
    jpeg = "jpeg"
    webp = "webp"


class ScheduleKind(Enum):
    """How noise grows over the timesteps."""

    linear = "linear"
    scaled_linear = "scaled_linear"
    cosine = "cosine"
    flow = "flow"
    ve = "ve"


class Prediction(Enum):
    """What a denoiser is trained to give."""

    epsilon = "epsilon"
    x0 = "x0"
    velocity = "velocity"
    flow = "flow"


class Weighting(Enum):
    """How a denoiser's error counts at each noise."""

    uniform = "uniform"
    min_snr = "min_snr"
    soft_min_snr = "soft_min_snr"
    p2 = "p2"
    edm = "edm"
    sigmoid = "sigmoid"


class TimestepDraw(Enum):
    """How times are drawn in training."""

    uniform = "uniform"
    logit_normal = "logit_normal"


class SamplerKind(Enum):
    """How to go from noise to latents."""

    ddim = "ddim"
    ddpm = "ddpm"


class EngineKind(Enum):
    """How training is spread over ranks."""

    single = "single"
    ddp = "ddp"
    zero1 = "zero1"
    zero2 = "zero2"
    zero3 = "zero3"


class Precision(Enum):
    """In what the forward pass of training computes."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class EncodingPrecision(Enum):
    """In what the frozen encoders compute."""

    fp32 = "fp32"
    bf16 = "bf16"


class OptimizerKind(Enum):
    """What makes an update of gradients."""

    adamw = "adamw"
    adamw_8bit = "adamw_8bit"


class OnNonfinite(Enum):
    """What a loss that is not finite leads to."""

    stop = "stop"
    skip = "skip"


class Decay(Enum):
    """What follows the learning rate's warm-up."""

    constant = "constant"
    cosine = "cosine"


class LatentDtype(Enum):
    """Number format of a cache."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


class LatentStore(Enum):
    """What is kept of an autoencoder's output."""

    moments = "moments"
    mean = "mean"


class LatentScale(Enum):
    """Where the numbers that make a final latent come from."""

    measured = "measured"
    published = "published"


class TextStore(Enum):
    """What is kept of a caption."""

    embeddings = "embeddings"
    ids = "ids"


class Pooled(Enum):
    """What a text model gives for a caption as a whole."""

    none = "none"
    pooled = "pooled"
    projected = "projected"


class TrackingKind(Enum):
    """What becomes of the W&B run."""

    offline = "offline"
    online = "online"
    off = "off"


class SweepSampler(Enum):
    """How a sweep chooses its trials."""

    grid = "grid"
    tpe = "tpe"
    cmaes = "cmaes"


class SweepPruner(Enum):
    """What ends a trial that does badly."""

    none = "none"
    median = "median"
    halving = "halving"


class DemoRecipe(Enum):
    """How much time the demo may take."""

    emoji = "emoji"
    emoji_hour = "emoji_hour"
    emoji_tiny = "emoji_tiny"
