"""The settings of what images and captions are encoded with: autoencoders and text encoders."""

from dataclasses import dataclass

from conf.enums import Pooled
from conf.fields import setting

CLASSES = "classes://"  # begins the path of a list of classes
MOST_CLASSES = 65_535


@dataclass(kw_only=True, slots=True)
class AutoencoderConfig:
    """Stage one: images to latents and back."""

    kind: str = setting("which autoencoder this is")


@dataclass(kw_only=True, slots=True)
class KLAutoencoderConfig(AutoencoderConfig):
    """The KL autoencoder of Rombach et al. 2022, to be trained."""

    kind: str = setting("which autoencoder this is", "kl")
    latent_channels: int = setting("channels of a latent", 4, low=1)
    channels: int = setting("channels of the first level", 128, low=1)
    channel_mult: list[int] = setting(
        "channels of each level, in multiples of the first; each but the last halves the size",
        [1, 2, 4, 4],
        low=1,
    )
    res_blocks: int = setting(
        "residual blocks a level in the encoder; the decoder has one more", 2, low=1
    )
    attention: bool = setting("self-attention in the middle block", True)
    patch_size: int = setting(
        "pixels to a side that the first layer folds into channels; 1 is the paper's", 1, low=1
    )
    linear_shortcut: bool = setting(
        "a linear map from patches to moments and back beside the network", False
    )
    norm_groups: int = setting("groups of every GroupNorm", 32, low=1)
    quant_convs: bool = setting(
        "1x1 convolutions after the encoder and before the decoder, as the paper has; SD 3 has none",
        True,
    )


@dataclass(kw_only=True, slots=True)
class TrainedAutoencoderConfig(AutoencoderConfig):
    """An autoencoder that `ldm autoencoder` has trained."""

    kind: str = setting("which autoencoder this is", "trained")
    url: str = setting("URL of the `ldm autoencoder` run")


@dataclass(kw_only=True, slots=True)
class PretrainedAutoencoderConfig(AutoencoderConfig):
    """An autoencoder of Stable Diffusion's kind that others have trained."""

    kind: str = setting("which autoencoder this is", "pretrained")
    path: str = setting(
        "a diffusers folder (AutoencoderKL or AutoencoderTiny), a .safetensors or .ckpt file of "
        "CompVis or Stability, or hf://ORG/NAME on the hub"
    )
    subfolder: str | None = setting("folder of the autoencoder in there, such as vae", None)
    revision: str | None = setting("commit, tag or branch on the hub; null is the newest", None)
    scale: float | None = setting(
        "published factor of its latents, for encoding.scale=published; null is what its files say",
        None,
        low=1e-6,
    )
    shift: float | None = setting("what is subtracted before; null is what its files say", None)


@dataclass(kw_only=True, slots=True)
class TextModelConfig:
    """One text model and which of its outputs is used."""

    path: str = setting(
        "folder of a transformers or open_clip model, package://NAME/FOLDER for one that an "
        "installed Python package ships, hf://ORG/NAME on the hub, or, where captions are classes, "
        "classes://COUNT for their numbers, or classes://FILE for names, one a line"
    )
    subfolder: str | None = setting(
        "folder of the model in there, such as text_encoder, whose tokenizer is in tokenizer beside "
        "it",
        None,
    )
    revision: str | None = setting("commit, tag or branch on the hub; null is the newest", None)
    layer: int = setting(
        "which layer's output is used: -1 the last, -2 the one before it, and so on",
        -1,
        low=-100,
        high=-1,
    )
    layer_norm: bool = setting(
        "whether the model's final norm follows a layer before the last (SD 2: yes, SDXL: no)",
        False,
    )
    pooled: Pooled = setting(
        "one vector a caption beside its tokens: none, the model's pooled output, or that output "
        "projected to the space that it shares with images",
        Pooled.none,
    )


@dataclass(kw_only=True, slots=True)
class TextEncoderConfig(TextModelConfig):
    """What captions are encoded with, token by token: one text model, or several side by side."""

    max_length: int = setting(
        "longest caption in tokens; longer ones are cut and counted", 77, low=1
    )
    padding: bool = setting(
        "fill captions up to max_length and use the filling as if it were words, as Stable "
        "Diffusion does; else real tokens alone",
        False,
    )
    joined: list[TextModelConfig] = setting(
        "more models, whose embeddings are appended to each token's, as SDXL has it", []
    )
