"""The denoiser that would be trained, as shapes on the meta device, and what a call of it takes."""

from collections.abc import Callable
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from conf.enums import Precision
from conf.errors import UserError
from conf.groups import UNetConfig
from training.models.unet import UNet
from training.perf import META, forward_flops
from training.plan.activations import kept_bytes
from training.plan.fed import Fed


class Denoiser:
    """A UNet without numbers.

    Args:
        config: Its sizes.
        fed: What it is fed with.
        learned_variance: Whether it says variances too.
        layout: Of images in memory.

    Raises:
        UserError: Sizes that cannot work.
    """

    def __init__(
        self,
        config: UNetConfig,
        fed: Fed,
        learned_variance: bool = False,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.fed, self._layout = fed, layout
        halvings = fed.downsampling * 2 ** (len(config.channel_mult) - 1)
        for side in sorted({side for sides in fed.buckets for side in sides}):
            if side % halvings:
                raise UserError(
                    f"unet.channel_mult={list(config.channel_mult)}",
                    f"needs images whose sides are multiples of {halvings} pixels, not {side}",
                    "give fewer levels",
                )
        try:
            with torch.device(META):
                unet = UNet(
                    config,
                    fed.channels,
                    fed.text_width,
                    fed.pooled_width,
                    (1 + learned_variance) * fed.channels,
                    fed.classes,
                )
        except ValueError as error:
            raise UserError("unet", str(error), "choose sizes that fit") from None
        self.unet = unet.to(memory_format=layout)
        self.kept = lru_cache(None)(self._kept)

    @property
    def sizes(self) -> list[int]:
        """Elements of every parameter."""
        return [parameter.numel() for parameter in self.unet.parameters()]

    def _kept(self, micro: int, precision: Precision, device: str, recompute: bool) -> int:
        """Bytes that so many samples of the largest image size keep, as `kept_bytes` has it."""
        call = self._call(self.fed.largest, micro)
        return kept_bytes(self.unet, call, precision, device, recompute)

    @cached_property
    def flops(self) -> float:
        """FLOPs of a forward pass for one image, in the mean over the image sizes."""

        def one(sides: tuple[int, int]) -> int:
            call = self._call(sides, 1)
            return forward_flops(self.unet, lambda model, *_: {"": call(model)}, None)

        return sum(share * one(sides) for sides, share in self.fed.buckets.items())

    def _call(self, sides: tuple[int, int], count: int) -> Callable[[nn.Module], Tensor]:
        """Calls a denoiser as a training step does, for so many samples of one image size."""
        fed = self.fed
        height, width = (side // fed.downsampling for side in sides)

        def call(model: nn.Module) -> Tensor:
            with torch.device(META):
                latents = torch.empty(count, fed.channels, height, width)
                given = [
                    latents.to(memory_format=self._layout),
                    torch.empty(count),
                    torch.empty(count, fed.tokens, fed.text_width),
                    torch.empty(count, fed.tokens, dtype=torch.bool),
                ]
                if fed.pooled_width:
                    given.append(torch.empty(count, fed.pooled_width))
            answer: Tensor = model(*given)
            return answer

        return call
