"""Stage one: the KL autoencoder of Rombach et al. 2022, images to moments and latents to images.

Owns the network and the arithmetic of a diagonal Gaussian; refuses to scale latents (a dataset's
LatentSpec does) and knows no loss but the KL term. Moments are raw: mean and log-variance as the
network gives them, unclamped and unscaled, so that what a cache stores is what was computed.

With `patch_size` 1 its weights are, renamed, those of Stable Diffusion's VAE; without `quant_convs`
those of Stable Diffusion 3's and FLUX's.
`patch_size` p folds p x p pixels into channels before the first convolution and back after the last
one: p*p times fewer places to convolve, for small machines.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conf.encoders import KLAutoencoderConfig
from training.models.layers import (
    Attention,
    Downsample,
    ResBlock,
    Upsample,
    image_to_tokens,
    normed_silu,
    tokens_to_image,
    zero_init,
)

IMAGE_CHANNELS = 3
NORM_EPS = 1e-6
LOG_VARIANCE_RANGE = (-30.0, 20.0)  # beyond, the exponential is of no use in 16 bits


def split_moments(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Takes raw moments (B, 2C, H, W) apart: mean and log-variance, clamped, each (B, C, H, W)."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)


def sample_moments(moments: Tensor, noise: Tensor) -> Tensor:
    """Draws unscaled latents (B, C, H, W) from moments (B, 2C, H, W) and standard normal noise."""
    mean, log_variance = split_moments(moments)
    return mean + torch.exp(0.5 * log_variance) * noise


def kl_divergence(moments: Tensor) -> Tensor:
    """The KL divergence of moments (B, 2C, H, W) to a standard normal, in nats: (B,), float32.

    Source: Kingma and Welling 2014 (arXiv:1312.6114), appendix B.
    """
    mean, log_variance = split_moments(moments.float())
    elements = mean.square() + log_variance.exp() - 1 - log_variance
    return 0.5 * elements.sum(dim=(1, 2, 3))


class KLAutoencoder(nn.Module):
    """Encodes images to the moments of a Gaussian and decodes latents drawn from it.

    Args:
        config: Sizes.

    Raises:
        ValueError: Channels that norm_groups does not divide; names the setting.

    Attributes:
        stochastic: Whether `encode` gives the moments of a Gaussian, to be drawn from.
        latent_channels: C, channels of a latent.
    """

    stochastic = True

    def __init__(self, config: KLAutoencoderConfig) -> None:
        super().__init__()
        for level, mult in enumerate(config.channel_mult):
            if config.channels * mult % config.norm_groups:
                raise ValueError(
                    f"autoencoder.channels={config.channels}: level {level} has "
                    f"{config.channels * mult} channels, not a multiple of "
                    f"autoencoder.norm_groups={config.norm_groups}"
                )
        self.patch_size = config.patch_size
        self.latent_channels = config.latent_channels
        self.levels = len(config.channel_mult)
        self.encoder = Encoder(config)
        self.quant_conv = _quant_conv(config, 2 * config.latent_channels)
        self.post_quant_conv = _quant_conv(config, config.latent_channels)
        self.decoder = Decoder(config)
        self.shortcut = PatchShortcut(config, self.downsampling) if config.linear_shortcut else None
        if self.shortcut is not None:  # start as the linear map alone
            zero_init(self.moments_conv)
            zero_init(self.decoder.conv_out)

    @property
    def downsampling(self) -> int:
        """Pixels to the side of a latent."""
        return self.patch_size * 2 ** (self.levels - 1)

    @property
    def moments_conv(self) -> nn.Conv2d:
        """The convolution that the moments come out of."""
        last = self.quant_conv
        return last if isinstance(last, nn.Conv2d) else self.encoder.conv_out

    def encode(self, images: Tensor) -> Tensor:
        """Encodes images (B, 3, H, W) in [-1, 1] to raw moments (B, 2C, H/f, W/f).

        Raises:
            ValueError: Height or width that `downsampling` does not divide.
        """
        height, width = images.shape[2:]
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"autoencoder.channel_mult and autoencoder.patch_size={self.patch_size}: images "
                f"are made {self.downsampling} times smaller, which does not divide "
                f"{height} x {width} pixels"
            )
        moments = self.quant_conv(self.encoder(F.pixel_unshuffle(images, self.patch_size)))
        return moments if self.shortcut is None else moments + self.shortcut.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Decodes unscaled latents (B, C, h, w) to images (B, 3, f*h, f*w), about [-1, 1]."""
        images = F.pixel_shuffle(self.decoder(self.post_quant_conv(latents)), self.patch_size)
        return images if self.shortcut is None else images + self.shortcut.decode(latents)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes, draws and decodes in one call, which is what data-parallel wrappers hook into.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            noise: (B, C, H/f, W/f), standard normal.

        Returns:
            The reconstructions (B, 3, H, W) and the moments (B, 2C, H/f, W/f).
        """
        moments = self.encode(images)
        return self.decode(sample_moments(moments, noise)), moments


class PatchShortcut(nn.Module):
    """A linear map from patches of f x f pixels to moments, and one back.

    It learns in a hundred steps what principal components give; the network learns the rest. The
    idea of a path past the network is that of DC-AE's residual autoencoding (Chen et al. 2025),
    with a learned map in the place of its averages.
    """

    def __init__(self, config: KLAutoencoderConfig, downsampling: int) -> None:
        super().__init__()
        channels, side = config.latent_channels, downsampling
        self.encode = nn.Conv2d(IMAGE_CHANNELS, 2 * channels, side, stride=side)
        self.decode = nn.ConvTranspose2d(channels, IMAGE_CHANNELS, side, stride=side)


class Encoder(nn.Module):
    """Folded images to moments before `quant_conv`: levels of ResBlocks, halved in between."""

    def __init__(self, config: KLAutoencoderConfig) -> None:
        super().__init__()
        channels = config.channels
        self.conv_in = nn.Conv2d(_folded_channels(config), channels, 3, padding=1)
        self.levels = nn.Sequential()
        for level, mult in enumerate(config.channel_mult):
            blocks = _res_blocks(config, channels, config.channels * mult, config.res_blocks)
            channels = config.channels * mult
            if level < len(config.channel_mult) - 1:
                blocks.add_module("resample", Downsample(channels, asymmetric=True))
            self.levels.append(blocks)
        self.middle = _middle(config, channels)
        self.norm_out = nn.GroupNorm(config.norm_groups, channels, NORM_EPS)
        self.conv_out = nn.Conv2d(channels, 2 * config.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3*p*p, H/p, W/p) to (B, 2C, H/f, W/f)."""
        hidden = self.middle(self.levels(self.conv_in(images)))
        return self.conv_out(normed_silu(self.norm_out, hidden))


class Decoder(nn.Module):
    """Latents after `post_quant_conv` to folded images: the encoder's levels in reverse."""

    def __init__(self, config: KLAutoencoderConfig) -> None:
        super().__init__()
        channels = config.channels * config.channel_mult[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.middle = _middle(config, channels)
        self.levels = nn.Sequential()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            blocks = _res_blocks(config, channels, config.channels * mult, config.res_blocks + 1)
            channels = config.channels * mult
            if level > 0:
                blocks.add_module("resample", Upsample(channels))
            self.levels.append(blocks)
        self.norm_out = nn.GroupNorm(config.norm_groups, channels, NORM_EPS)
        self.conv_out = nn.Conv2d(channels, _folded_channels(config), 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, H/f, W/f) to (B, 3*p*p, H/p, W/p)."""
        hidden = self.levels(self.middle(self.conv_in(latents)))
        return self.conv_out(normed_silu(self.norm_out, hidden))


class AttentionBlock(nn.Module):
    """Self-attention of one head over the places of an image, with a residual."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, NORM_EPS)
        self.attention = Attention(channels, channels, channels, qkv_bias=True)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        tokens = image_to_tokens(self.norm(images))
        return images + tokens_to_image(self.attention(tokens, tokens), *images.shape[2:])


def _quant_conv(config: KLAutoencoderConfig, channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 1) if config.quant_convs else nn.Identity()


def _folded_channels(config: KLAutoencoderConfig) -> int:
    return IMAGE_CHANNELS * config.patch_size**2


def _res_blocks(
    config: KLAutoencoderConfig, channels_in: int, channels_out: int, count: int
) -> nn.Sequential:
    widths = [channels_in] + [channels_out] * count
    return nn.Sequential(
        *(
            ResBlock(before, after, config.norm_groups, eps=NORM_EPS)
            for before, after in pairwise(widths)
        )
    )


def _middle(config: KLAutoencoderConfig, channels: int) -> nn.Sequential:
    """A ResBlock, attention if configured, a ResBlock."""
    middle = nn.Sequential()
    middle.add_module("res1", ResBlock(channels, channels, config.norm_groups, eps=NORM_EPS))
    if config.attention:
        middle.add_module("attention", AttentionBlock(channels, config.norm_groups))
    middle.add_module("res2", ResBlock(channels, channels, config.norm_groups, eps=NORM_EPS))
    return middle
