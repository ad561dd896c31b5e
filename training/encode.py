"""Images and captions to what a cache stores of them; the cache stage and training share it.

A convolution or a matrix product sums in an order that depends on its shape, so the last bits of
what an encoder gives depend on how many images it was given. Here every forward pass of one image
size has one shape, filled up where there are too few: what a sample's numbers are does not depend
on the samples beside it, nor on where a job was killed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conf.encoding import EncodingConfig
from conf.enums import EncodingPrecision, LatentStore
from conf.errors import RunError, UserError
from data.say import say
from training.autoencode import to_images
from training.device import exact_float32, pick_device
from training.encoders import Autoencoder
from training.models.text import TextEncoder, TextEncoding
from training.numbers import DTYPES, as_array

T = TypeVar("T")
PIXELS_AT_ONCE = 2**21
MOST_IMAGES_AT_ONCE = 64
CAPTIONS_AT_ONCE = 32
TOKENS_STEP = 8  # lengths of captions are rounded up to multiples of so many tokens


@dataclass(frozen=True, slots=True)
class StoredLatents:
    """What is stored of some images, and what the number format did to their means.

    Args:
        values: Raw moments (B, 2C, h, w) or means (B, C, h, w), as they are stored.
        squared_error: Sum over each image's means of the squared change, float64, (B,).
        max_error: The most that a mean of each image was changed, float64, (B,).
        finite: Whether all numbers of each image are, (B,).
        computed: Whether they were so in float32, (B,).
    """

    values: NDArray[Any]
    squared_error: NDArray[np.float64]
    max_error: NDArray[np.float64]
    finite: NDArray[np.bool_]
    computed: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class StoredText:
    """What is stored of a caption: embeddings (L, D) or ids (L, models), and a vector (P,)."""

    tokens: NDArray[Any]
    pooled: NDArray[Any] | None


class Encoder:
    """Encodes images and captions on this process's device.

    Args:
        autoencoder: What encodes images; None where there are captions alone.
        text_encoder: What encodes captions.
        config: What is kept.
        micro_batch_size: Images encoded at once; None is by their pixels.

    Raises:
        UserError: The autoencoder has not what is to be kept.
    """

    def __init__(
        self,
        autoencoder: Autoencoder | None,
        text_encoder: TextEncoder,
        config: EncodingConfig,
        micro_batch_size: int | None = None,
    ) -> None:
        model = None if autoencoder is None else autoencoder.model
        if model is not None and config.store is LatentStore.moments and not model.stochastic:
            raise UserError(
                "encoding.store=moments",
                "is more than this autoencoder gives, which has no log-variance",
                "choose encoding.store=mean",
            )
        self.device = pick_device()
        self.autoencoder: Any = None if model is None else model.to(self.device)
        self.text_encoder = text_encoder.to(self.device)
        self.config = config
        self.most_captions = CAPTIONS_AT_ONCE
        self._micro_batch_size = micro_batch_size
        self._most_images: dict[tuple[int, int], int] = {}  # of sizes that were too many for memory

    def images_at_once(self, height: int, width: int) -> int:
        """How many images of a size one forward pass takes."""
        by_pixels = max(1, min(MOST_IMAGES_AT_ONCE, PIXELS_AT_ONCE // (height * width)))
        return self._most_images.get((height, width), self._micro_batch_size or by_pixels)

    def padded_length(self, length: int) -> int:
        """How long a caption of so many tokens is made before it is embedded."""
        step = -(-length // TOKENS_STEP) * TOKENS_STEP
        return min(step, max(length, self.text_encoder.max_length))

    def latents(self, images: Sequence[NDArray[np.uint8]]) -> "Pending":
        """Begin to encode images (H, W, 3) of one size."""
        height, width = images[0].shape[:2]

        def forward(part: Sequence[NDArray[np.uint8]], shape: int) -> tuple[Tensor, ...]:
            pixels = np.zeros((shape, height, width, 3), np.uint8)
            for row, image in zip(pixels, part, strict=False):
                row[:] = image
            return tuple(one[: len(part)] for one in self._latents(pixels))

        parts = []
        while images:
            at_once = self.images_at_once(height, width)
            part = images[:at_once]
            made = _unless_too_large(lambda part=part, at_once=at_once: forward(part, at_once))
            if made is None:
                self._most_images[height, width] = _halved(at_once, f"images of {height}x{width}")
                continue
            parts.append(made)
            images = images[len(part) :]
        return Pending(parts, self.device)

    def captions(self, captions: Sequence[str]) -> list[StoredText]:
        """Embed captions of any lengths, in their order."""
        return self.texts_of_any_length(self.text_encoder.tokenize(list(captions)).ids)

    def texts_of_any_length(self, ids: Sequence[NDArray[np.int32]]) -> list[StoredText]:
        """Embed tokens (models, L) of captions, in their order."""
        by_length: dict[int, list[int]] = {}
        for number, one in enumerate(ids):
            by_length.setdefault(self.padded_length(one.shape[1]), []).append(number)
        found: dict[int, StoredText] = {}
        for numbers in by_length.values():
            stored = self.texts([ids[number] for number in numbers])
            found |= dict(zip(numbers, stored, strict=True))
        return [found[number] for number in range(len(ids))]

    def texts(self, ids: Sequence[NDArray[np.int32]]) -> list[StoredText]:
        """Embed tokens (models, L) of captions whose padded lengths are the same.

        Raises:
            NotFinite: Numbers are not finite in the number format asked for.
        """
        length = self.padded_length(max(one.shape[1] for one in ids))
        found: list[StoredText] = []
        while len(found) < len(ids):
            part = ids[len(found) : len(found) + self.most_captions]
            filled = [*part, *[part[0]] * (self.most_captions - len(part))]
            encoding = _unless_too_large(lambda filled=filled: self._embed(filled, length))
            if encoding is None:
                self.most_captions = _halved(self.most_captions, "captions")
                continue
            first = len(found)
            tokens = self._finite(encoding.embeddings[: len(part)], first)
            pooled = None
            if encoding.pooled is not None:
                pooled = self._finite(encoding.pooled[: len(part)], first)
            found += [
                StoredText(tokens[row, : one.shape[1]], None if pooled is None else pooled[row])
                for row, one in enumerate(part)
            ]
        return found

    @torch.inference_mode()
    def _latents(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, ...]:
        """The fields of `StoredLatents` as tensors that may still be computed."""
        images = to_images(pixels, self.device).contiguous(memory_format=torch.channels_last)
        with self._autocast(), exact_float32():
            computed = self.autoencoder.encode(images).float()
        if self.config.store is LatentStore.mean and self.autoencoder.stochastic:
            computed = computed.chunk(2, dim=1)[0]
        stored = computed.to(DTYPES[self.config.dtype.value])
        channels = self.autoencoder.latent_channels
        change = (stored[:, :channels].float() - computed[:, :channels]).flatten(1).double()
        results = (
            stored,
            change.square().sum(1),
            change.abs().amax(1),
            stored.isfinite().flatten(1).all(1),
            computed.isfinite().flatten(1).all(1),
        )
        return tuple(one.to("cpu", non_blocking=True) for one in results)

    @torch.inference_mode()
    def _embed(self, ids: Sequence[NDArray[np.int32]], length: int) -> TextEncoding:
        with self._autocast(), exact_float32():
            return self.text_encoder.embed(ids, length)

    def _finite(self, values: Tensor, first: int) -> NDArray[Any]:
        """Values (B, ...) as they are stored; the first of them is the caption of that number."""
        stored = values.to(DTYPES[self.config.dtype.value]).cpu()
        bad = (~stored.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        if bad:
            computed = bool(values[bad[0]].isfinite().all())
            raise NotFinite(first + bad[0], computed, self.config)
        return as_array(stored)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision is EncodingPrecision.bf16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)


class NotFinite(RunError):
    """A caption whose embedding is not finite.

    Args:
        number: Of the caption, among those that were given.
        computed: Whether it was finite in float32.
        config: In what it was to be stored.
    """

    def __init__(self, number: int, computed: bool, config: EncodingConfig) -> None:
        self.number, self.computed = number, computed
        super().__init__(not_finite("text encoder's embeddings", config, computed))


class Pending:
    """Latents that a device may still be at work on."""

    def __init__(self, parts: list[tuple[Tensor, ...]], device: torch.device) -> None:
        self._parts = parts
        self._done: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(device))

    def result(self) -> StoredLatents:
        """Waits for them."""
        if self._done is not None:
            self._done.synchronize()
        joined = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        return StoredLatents(*map(as_array, joined))


def not_finite(what: str, config: EncodingConfig, computed: bool) -> str:
    """Why numbers are not finite, in words; `computed` tells whether they were so in float32."""
    if not computed:
        return (
            f"the {what} are not finite; check its weights, or encode with encoding.precision=fp32"
        )
    return f"the {what} overflow {config.dtype.value}: cache with encoding.dtype=float32"


def _unless_too_large(attempt: Callable[[], T]) -> T | None:
    """What an attempt gives; None if memory was too small for it."""
    try:
        return attempt()
    except RuntimeError as error:
        words = ("can't allocate", "STATUS_ALLOC_FAILED")
        if not isinstance(error, torch.OutOfMemoryError) and not any(
            w in str(error) for w in words
        ):
            raise
    return None


def _halved(at_once: int, what: str) -> int:
    """Half as many; called where no error holds what was computed alive any more.

    Raises:
        RunError: There is no room for one.
    """
    if at_once == 1:
        raise RunError(f"there is not memory enough to encode one of the {what}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    say(f"cache: out of memory with {at_once} {what} at once, going on with {at_once // 2}")
    return at_once // 2
