"""The settings of what is kept of images and captions once they are encoded."""

from dataclasses import dataclass

from conf.enums import EncodingPrecision, LatentDtype, LatentScale, LatentStore, TextStore
from conf.fields import setting


@dataclass(kw_only=True, slots=True)
class EncodingConfig:
    """What is kept of images and captions, and in which numbers."""

    dtype: LatentDtype = setting(
        "number format of latents and text embeddings; what it changes is measured",
        LatentDtype.float16,
    )
    precision: EncodingPrecision = setting(
        "in what the encoders compute: fp32, or bf16, which is faster and coarser",
        EncodingPrecision.fp32,
    )
    store: LatentStore = setting(
        "moments (mean and log-variance, drawn from in training) or mean (half the bytes)",
        LatentStore.moments,
    )
    scale: LatentScale = setting(
        "what makes a final latent: measured (zero mean and unit variance per channel over the "
        "whole set) or published (the factor that comes with the weights, as their denoisers want)",
        LatentScale.measured,
    )
    flip: bool = setting("store every image flipped too; a view is drawn at each place", False)
    crops: int = setting("random crops stored of every image beside the center", 0, low=0, high=64)
    crop_zoom: float = setting(
        "how much larger than its size an image is made before it is cropped at random",
        1.125,
        low=1,
        high=8,
    )
    crop_seed: int = setting("seed of the random crops", 0, low=0, high=4611686018427387904)
    captions: list[str] = setting(
        "fields of the samples' json that hold captions, one text or a list, in the place of the "
        "dataset's own; one is drawn at each place",
        [],
    )
    text: TextStore = setting(
        "embeddings, or ids of tokens, from which training computes the embeddings at every step",
        TextStore.embeddings,
    )
