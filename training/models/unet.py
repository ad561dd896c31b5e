"""The denoiser: the text-conditional UNet of Rombach et al. 2022, with Stable Diffusion's layout.

Owns the order of blocks and the sizes that can work; refuses to know what its output means (noise,
velocity or latents), which is the business of `training.diffusion`.

With `pooled_text` off its weights are, renamed, those of Stable Diffusion 2. The second convolution
of every ResBlock, the last layer of every SpatialTransformer and the last convolution start at
zero, as in the authors' code: the network starts at the output 0, the mean of the noise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conf.groups import UNetConfig
from training.models.classes import ClassEmbedding
from training.models.layers import (
    Downsample,
    ResBlock,
    SpatialTransformer,
    Upsample,
    normed_silu,
    timestep_embedding,
    zero_init,
)


def check_config(config: UNetConfig) -> None:
    """Refuses sizes that cannot work.

    Raises:
        ValueError: A setting does not fit another; names both.
    """
    levels = len(config.channel_mult)
    if config.channels % 2:
        raise ValueError(f"unet.channels={config.channels}: half are cosines, so it has to be even")
    if not all(0 <= level < levels for level in config.attention_levels):
        raise ValueError(
            f"unet.attention_levels={config.attention_levels}: unet.channel_mult has {levels} "
            f"levels, 0 to {levels - 1}"
        )
    for level, mult in enumerate(config.channel_mult):
        channels = config.channels * mult
        where = f"unet.channels={config.channels}: level {level} has {channels} channels, "
        if channels % config.norm_groups:
            raise ValueError(f"{where}not a multiple of unet.norm_groups={config.norm_groups}")
        # The middle block, at the last level's width, attends in any case.
        attends = level in config.attention_levels or level == levels - 1
        name = "head_channels" if config.heads is None else "heads"
        if attends and channels % (divisor := getattr(config, name)):
            raise ValueError(f"{where}not a multiple of unet.{name}={divisor}")


def head_channels(config: UNetConfig, channels: int) -> int:
    """Channels of one attention head at a level of so many."""
    return config.head_channels if config.heads is None else channels // config.heads


class Stage(nn.Module):
    """A ResBlock and, where the level attends, a SpatialTransformer after it."""

    def __init__(
        self, config: UNetConfig, channels_in: int, channels_out: int, context_width: int | None
    ) -> None:
        super().__init__()
        self.res = ResBlock(
            channels_in,
            channels_out,
            config.norm_groups,
            embedding_width=4 * config.channels,
            dropout=config.dropout,
        )
        self.transformer = None
        if context_width is not None:
            self.transformer = SpatialTransformer(
                channels_out,
                context_width,
                head_channels(config, channels_out),
                config.transformer_depth,
                config.norm_groups,
            )

    def forward(
        self, images: Tensor, embedding: Tensor, context: Tensor, context_mask: Tensor | None
    ) -> Tensor:
        """(B, channels_in, H, W) to (B, channels_out, H, W)."""
        images = self.res(images, embedding)
        if self.transformer is not None:
            images = self.transformer(images, context, context_mask)
        return images


class Level(nn.Module):
    """The stages of one resolution and the step to the next one, which the last level lacks."""

    def __init__(self, stages: list[Stage], resample: Downsample | Upsample | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.resample = resample


class UNet(nn.Module):
    """Predicts from noisy latents, their timesteps and a text condition.

    Args:
        config: Sizes.
        latent_channels: Channels of the latents.
        context_width: Width of the text embeddings.
        pooled_width: Width of the vectors of whole captions, for `pooled_text`; 0 takes the mean of
            the text embeddings in their place.
        out_channels: Channels of the output; None is those of the latents.
        classes: How many classes captions are, whose vectors of `class_width` this learns; 0 where
            captions are text.

    Raises:
        ValueError: Sizes that cannot work; names the setting.
    """

    def __init__(
        self,
        config: UNetConfig,
        latent_channels: int,
        context_width: int,
        pooled_width: int = 0,
        out_channels: int | None = None,
        classes: int = 0,
    ) -> None:
        super().__init__()
        check_config(config)
        self.channels = config.channels
        self.downsampling = 2 ** (len(config.channel_mult) - 1)
        self.class_embedding = None
        if classes:
            context_width = config.class_width
            self.class_embedding = ClassEmbedding(classes, context_width)
        self.time_mlp = _mlp(config.channels, 4 * config.channels)
        self.pooled_text = None
        if config.pooled_text:
            width = pooled_width or context_width
            self.pooled_text = nn.Sequential(nn.LayerNorm(width), _mlp(width, 4 * config.channels))
        self.conv_in = nn.Conv2d(latent_channels, config.channels, 3, padding=1)
        skips = self._build_down(config, context_width)
        deepest = config.channels * config.channel_mult[-1]
        self.middle = nn.ModuleList(
            [Stage(config, deepest, deepest, context_width), Stage(config, deepest, deepest, None)]
        )
        self._build_up(config, context_width, skips)
        self.norm_out = nn.GroupNorm(config.norm_groups, config.channels)
        out_channels = out_channels or latent_channels
        self.conv_out = zero_init(nn.Conv2d(config.channels, out_channels, 3, padding=1))

    def _build_down(self, config: UNetConfig, context_width: int) -> list[int]:
        """Sets `down`, from the first level to the last; returns the channels of its skips."""
        self.down = nn.ModuleList()
        channels, skips = config.channels, [config.channels]
        for level, mult in enumerate(config.channel_mult):
            width = context_width if level in config.attention_levels else None
            stages = []
            for _ in range(config.res_blocks):
                stages.append(Stage(config, channels, config.channels * mult, width))
                channels = config.channels * mult
                skips.append(channels)
            last = level == len(config.channel_mult) - 1
            if not last:
                skips.append(channels)
            self.down.append(Level(stages, None if last else Downsample(channels)))
        return skips

    def _build_up(self, config: UNetConfig, context_width: int, skips: list[int]) -> None:
        """Sets `up`, from the last level to the first; uses up `skips` from the end."""
        self.up = nn.ModuleList()
        channels = skips[-1]
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            width = context_width if level in config.attention_levels else None
            stages = []
            for _ in range(config.res_blocks + 1):
                stages.append(Stage(config, channels + skips.pop(), config.channels * mult, width))
                channels = config.channels * mult
            self.up.append(Level(stages, None if level == 0 else Upsample(channels)))

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Tensor,
        context_mask: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> Tensor:
        """Predicts a tensor of the latents' height and width.

        Args:
            latents: (B, C, H, W), noisy.
            timesteps: (B,), integer or float, in [0, num_timesteps).
            context: (B, L, context_width), the text embeddings token by token; (B, 1, 2), digits of
                a number, where captions are classes.
            context_mask: (B, L) bool, True at real tokens; None where all of them are real.
            pooled: (B, pooled_width), a vector for each caption.

        Returns:
            (B, out_channels, H, W).

        Raises:
            ValueError: Height or width that the levels cannot halve.
        """
        height, width = latents.shape[2:]
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"unet.channel_mult has {len(self.down)} levels: the latents' height and width "
                f"have to be multiples of {self.downsampling}, not {height} and {width}"
            )
        if self.class_embedding is not None:
            context = self.class_embedding(context)
        if pooled is None and self.pooled_text is not None:
            pooled = masked_mean(context, context_mask)
        embedding = self._embed(latents, timesteps, pooled)
        condition = (embedding, context, context_mask)
        hidden = self.conv_in(latents)
        skips = [hidden]
        for level in self.down:
            for stage in level.stages:
                hidden = stage(hidden, *condition)
                skips.append(hidden)
            if level.resample is not None:
                hidden = level.resample(hidden)
                skips.append(hidden)
        for stage in self.middle:
            hidden = stage(hidden, *condition)
        for level in self.up:
            for stage in level.stages:
                hidden = stage(torch.cat([hidden, skips.pop()], dim=1), *condition)
            if level.resample is not None:
                hidden = level.resample(hidden)
        return self.conv_out(normed_silu(self.norm_out, hidden))

    def _embed(self, latents: Tensor, timesteps: Tensor, pooled: Tensor | None) -> Tensor:
        """The embedding of timesteps and pooled text, activated: (B, 4 * channels)."""
        embedding = self.time_mlp(timestep_embedding(timesteps, self.channels).to(latents.dtype))
        if self.pooled_text is not None:
            embedding = embedding + self.pooled_text(pooled)
        return F.silu(embedding)


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real tokens: (B, L, D) and (B, L) bool to (B, D); 0 where none is real."""
    if mask is None:
        return tokens.mean(dim=1)
    weights = mask.to(tokens.dtype)[:, :, None]
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _mlp(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width_out), nn.SiLU(), nn.Linear(width_out, width_out))
