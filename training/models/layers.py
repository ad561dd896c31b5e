"""The blocks that the denoiser and the autoencoder are made of.

Owns the arithmetic of one block each; refuses to know in what order a network uses them. Images
are (B, C, H, W), tokens are (B, N, C). Nothing here copies to change the memory layout, so
`channels_last` weights and activations stay so.

Source: Rombach et al. 2022 (arXiv:2112.10752), as Stable Diffusion 2 has it. The blocks are those
of Dhariwal and Nichol 2021 (arXiv:2105.05233), where the last layer of a residual branch starts at
zero: every block starts as its skip, so that depth does not blow up or starve the first gradients.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_PERIOD = 10_000  # of the sinusoids, in timesteps

Module = TypeVar("Module", bound=nn.Module)


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoids of geometrically spaced frequencies, all cosines first, then all sines.

    Args:
        timesteps: (B,), integer or float.
        width: Width of the embedding; even.

    Returns:
        (B, width), float32.

    Source: Vaswani et al. 2017, section 3.5, in the order of Rombach et al. 2022's code.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    frequencies = torch.exp(-math.log(MAX_PERIOD) * exponents)
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def zero_init(module: Module) -> Module:
    """Sets every parameter of `module` to zero and returns it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def image_to_tokens(images: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H*W, C): a view, and contiguous if `images` are channels_last."""
    return images.flatten(2).transpose(1, 2)


def tokens_to_image(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, H*W, C) to (B, C, H, W): a view, channels_last if `tokens` are contiguous."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def normed_silu(norm: nn.Module, images: Tensor) -> Tensor:
    """SiLU of a norm's output, in its own memory where no gradient needs what came in."""
    return F.silu(norm(images), inplace=not torch.is_grad_enabled())


class ResBlock(nn.Module):
    """Two convolutions with a residual, optionally shifted in between by an embedding.

    Args:
        channels_in: Channels that come in.
        channels_out: Channels that go out; where they differ, the skip is a 1x1 convolution.
        norm_groups: Groups of both GroupNorms.
        embedding_width: Width of the embedding; None is no embedding.
        dropout: Dropout before the second convolution.
        eps: Of both GroupNorms: 1e-5 in the denoiser, 1e-6 in the autoencoder.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        norm_groups: int,
        *,
        embedding_width: int | None = None,
        dropout: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, channels_in, eps)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.shift = None if embedding_width is None else nn.Linear(embedding_width, channels_out)
        self.norm2 = nn.GroupNorm(norm_groups, channels_out, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, images: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Maps (B, channels_in, H, W) and an activated embedding (B, E) to (B, channels_out, H, W).

        The embedding comes in after its SiLU, which is the same in all blocks and so is done once.
        """
        hidden = self.conv1(normed_silu(self.norm1, images))
        if self.shift is not None:
            hidden = hidden + self.shift(embedding)[:, :, None, None]
        hidden = self.conv2(self.dropout(normed_silu(self.norm2, hidden)))
        return self.skip(images) + hidden


class Attention(nn.Module):
    """Multi-head attention from tokens to a context, which may be the tokens themselves.

    Args:
        width: Width of the tokens.
        context_width: Width of the context.
        head_channels: Width of one head; divides `width`.
        qkv_bias: Whether queries, keys and values have a bias.

    Source: Eq. 1 of Vaswani et al. 2017.
    """

    def __init__(
        self, width: int, context_width: int, head_channels: int, *, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        self.heads = width // head_channels
        self.to_q = nn.Linear(width, width, bias=qkv_bias)
        self.to_k = nn.Linear(context_width, width, bias=qkv_bias)
        self.to_v = nn.Linear(context_width, width, bias=qkv_bias)
        self.to_out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, context: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Attends from (B, N, width) to (B, L, context_width); returns (B, N, width).

        Args:
            tokens: Where the queries come from.
            context: Where keys and values come from.
            key_mask: (B, L) bool, True where the context is real; None is real everywhere.
        """
        query, key, value = (
            projected.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N or L, D)
            for projected in (self.to_q(tokens), self.to_k(context), self.to_v(context))
        )
        mask = None if key_mask is None else key_mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """A hidden layer of four times the width, gated by a GELU.

    Source: GEGLU, Eq. 6 of Shazeer 2020 (arXiv:2002.05202).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(width, 2 * 4 * width)
        self.proj_out = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, width) to (B, N, width)."""
        hidden, gate = self.proj_in(tokens).chunk(2, dim=2)
        return self.proj_out(hidden * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each after a LayerNorm, with residuals."""

    def __init__(self, width: int, context_width: int, head_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = Attention(width, width, head_channels)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attention = Attention(width, context_width, head_channels)
        self.norm3 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(self, tokens: Tensor, context: Tensor, context_mask: Tensor | None) -> Tensor:
        """(B, N, width) and the context (B, L, context_width) to (B, N, width)."""
        normed = self.norm1(tokens)
        tokens = tokens + self.self_attention(normed, normed)
        tokens = tokens + self.cross_attention(self.norm2(tokens), context, context_mask)
        return tokens + self.feed_forward(self.norm3(tokens))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the places of an image, with a residual around them.

    Source: Rombach et al. 2022, appendix E.2.1; linear projections as in Stable Diffusion 2.
    """

    def __init__(
        self, channels: int, context_width: int, head_channels: int, depth: int, norm_groups: int
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, context_width, head_channels) for _ in range(depth)
        )
        self.proj_out = zero_init(nn.Linear(channels, channels))

    def forward(self, images: Tensor, context: Tensor, context_mask: Tensor | None) -> Tensor:
        """(B, C, H, W) and the context (B, L, context_width) to (B, C, H, W)."""
        tokens = self.proj_in(image_to_tokens(self.norm(images)))
        for block in self.blocks:
            tokens = block(tokens, context, context_mask)
        # The image comes first, because a sum takes the memory layout of its first operand.
        return images + tokens_to_image(self.proj_out(tokens), *images.shape[2:])


class Downsample(nn.Module):
    """A convolution of stride 2 that halves height and width.

    Args:
        channels: Channels in and out.
        asymmetric: Pads right and below only, as the autoencoder does; else all around.
    """

    def __init__(self, channels: int, *, asymmetric: bool = False) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        return self.conv(F.pad(images, (0, 1, 0, 1)) if self.asymmetric else images)


class Upsample(nn.Module):
    """Nearest-neighbour doubling of height and width, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(images, scale_factor=2.0, mode="nearest"))
