"""The tiny autoencoder: a small distilled network in the place of Stable Diffusion's, for previews.

Owns the network; refuses to be trained here and to scale latents. It knows no posterior: `encode`
gives latents, already of the scale that the denoiser of its big sister sees.

Source: TAESD, https://github.com/madebyollin/taesd (MIT licence), in diffusers `AutoencoderTiny`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

IMAGE_CHANNELS = 3
LATENT_BOUND = 3.0  # the decoder bends latents smoothly into plus and minus this


@dataclass(frozen=True, slots=True)
class TinySizes:
    """Sizes of a tiny autoencoder.

    Attributes:
        latent_channels: C, channels of a latent.
        channels: Channels of every layer within.
        encoder_blocks: Residual blocks of each level; each level but the first halves the size.
        decoder_blocks: The same on the way back; each level but the last doubles the size.
    """

    latent_channels: int = 4
    channels: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)


class TinyAutoencoder(nn.Module):
    """Encodes images to latents and back, without a posterior.

    Args:
        sizes: Sizes.

    Raises:
        ValueError: Levels of the encoder and the decoder differ in number.

    Attributes:
        stochastic: Whether `encode` gives the moments of a Gaussian, to be drawn from.
        latent_channels: C, channels of a latent.
    """

    stochastic = False

    def __init__(self, sizes: TinySizes) -> None:
        super().__init__()
        self.levels, levels_back = len(sizes.encoder_blocks), len(sizes.decoder_blocks)
        if self.levels != levels_back:
            raise ValueError(f"{self.levels} levels in the encoder, {levels_back} in the decoder")
        self.latent_channels = sizes.latent_channels
        self.encoder = _encoder(sizes)
        self.decoder = _decoder(sizes)

    @property
    def downsampling(self) -> int:
        """Pixels to the side of a latent."""
        return 2 ** (self.levels - 1)

    def encode(self, images: Tensor) -> Tensor:
        """Encodes images (B, 3, H, W) in [-1, 1] to latents (B, C, H/f, W/f).

        Raises:
            ValueError: Height or width that `downsampling` does not divide.
        """
        height, width = images.shape[2:]
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"autoencoder: images are made {self.downsampling} times smaller, which does not "
                f"divide {height} x {width} pixels"
            )
        return self.encoder((images + 1) / 2)  # its layers see [0, 1]

    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents (B, C, h, w) to images (B, 3, f*h, f*w), about [-1, 1]."""
        bounded = LATENT_BOUND * torch.tanh(latents / LATENT_BOUND)
        return 2 * self.decoder(bounded) - 1


class TinyBlock(nn.Module):
    """Three convolutions with a residual, all with ReLUs and without norms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(channels, channels),
            nn.ReLU(),
            _conv(channels, channels),
            nn.ReLU(),
            _conv(channels, channels),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return torch.relu(self.conv(images) + images)


def _conv(channels_in: int, channels_out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=bias)


def _encoder(sizes: TinySizes) -> nn.Sequential:
    """Images (B, 3, H, W) in [0, 1] to latents."""
    channels = sizes.channels
    layers = nn.Sequential()
    for level, blocks in enumerate(sizes.encoder_blocks):
        first = level == 0
        layers.append(
            _conv(IMAGE_CHANNELS, channels)
            if first
            else _conv(channels, channels, stride=2, bias=False)
        )
        layers.extend(TinyBlock(channels) for _ in range(blocks))
    return layers.append(_conv(channels, sizes.latent_channels))


def _decoder(sizes: TinySizes) -> nn.Sequential:
    """Bounded latents to images (B, 3, H, W) in [0, 1]."""
    channels = sizes.channels
    layers = nn.Sequential(_conv(sizes.latent_channels, channels), nn.ReLU())
    for level, blocks in enumerate(sizes.decoder_blocks):
        layers.extend(TinyBlock(channels) for _ in range(blocks))
        if level < len(sizes.decoder_blocks) - 1:
            layers.append(nn.Upsample(scale_factor=2.0, mode="nearest"))
            layers.append(_conv(channels, channels, bias=False))
    return layers.append(_conv(channels, IMAGE_CHANNELS))
