"""Samples and the empty caption, encoded again and held to what is stored."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.arrays import load_array
from data.collate import image_of
from data.image import BadImage
from data.manifest import sha256
from data.sample import RawSample
from data.spec import EMPTY_POOLED
from data.tar import CorruptShard, key_of
from data.views import make_view
from training.audit.material import Material
from training.cache.read import NoCaption, captions_of
from training.encode import Encoder, NotFinite, StoredText
from training.numbers import as_tensor
from training.step import mean_of
from training.trained import to_pixels

# How far what is encoded again may be from what is stored: some roundings of the number format, and
# a thousandth of the spread for other shapes of batches and other devices.
ROUNDINGS = 4
SPREAD = 1e-3
EPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-20}
LEAST = 1e-30  # may be, where all numbers are 0
NEVER = float("inf")

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Audited:
    """One sample, encoded again.

    Args:
        key: Its key.
        latents: The largest difference to what is stored, in multiples of what may be.
        text: The same for its captions and their vectors.
        psnr: Of the decoded mean of each view against the view, in dB.
    """

    key: str
    latents: float
    text: float
    psnr: float


class Auditor:
    """Encodes what a dataset of latents was made from again.

    Args:
        material: The dataset, its images and its encoders.
    """

    def __init__(self, material: Material) -> None:
        self.latents, self.images = material.latents, material.images
        self.spec, self.text = material.latent_spec, material.text_spec
        self.encoding = material.encoding
        views = len(self.spec.views)
        self.encoder = Encoder(material.autoencoder, material.text_encoder, self.encoding, views)
        self.encoder.most_captions = 1  # those of one sample at a time

    def sample(self, shard: int, row: int) -> tuple[Audited, Pair] | str:
        """Encode one sample again.

        Returns:
            How it compares, with its first view and what is decoded of it; a line if it cannot be.
        """
        try:
            stored = self.latents.read(shard, row)
            raw = self._raw(shard, stored.key)
        except CorruptShard as error:
            return str(error)
        if raw is None:
            return f"{stored.key}: is not among the images of its shard"
        try:
            return self._compared(stored, raw)
        except BadImage as error:
            return f"{stored.key}: its image cannot be decoded ({error})"
        except NoCaption as error:
            return f"{stored.key}: its image {error}"
        except (NotFinite, KeyError, ValueError) as error:
            return f"{stored.key}: cannot be compared ({error})"

    def empty_fault(self) -> str | None:
        """What is wrong with what is stored of the empty caption, or None."""
        pinned = {self.text.empty: self.text.empty_sha256}
        if self.text.pooled_members:
            pinned[EMPTY_POOLED] = self.text.empty_pooled_sha256
        kept = []
        for name, wanted in pinned.items():
            try:
                content = self.latents.prefix.read(name)
                if sha256(content) != wanted:
                    return f"{name}: is not what the manifest pins"
                kept.append(load_array(content))
            except FileNotFoundError:
                return f"{name}: is missing"
            except ValueError as error:
                return f"{name}: cannot be read ({error})"
        try:
            again = self._texts([""])[0]
        except NotFinite as error:
            return f"{self.text.empty}: cannot be compared ({error})"
        apart = self._text_apart(StoredText(kept[0], kept[1] if len(kept) > 1 else None), again)
        if apart <= 1:
            return None
        return f"the empty caption differs {apart:,.1f} times more than rounding explains"

    def _compared(self, stored: RawSample, raw: RawSample) -> tuple[Audited, Pair] | str:
        image = image_of(raw)
        size = self.latents.manifest.buckets[stored.bucket]
        views = [
            make_view(image, size, self.encoding, number, raw.key)
            for number in range(len(self.spec.views))
        ]
        again = self.encoder.latents(views).result()
        kept = [load_array(stored.members[name]) for name in self.spec.members]
        if not again.finite.all():
            return f"{stored.key}: its latents are not finite in {self.spec.dtype}"
        pairs = list(zip(kept, again.values, strict=True))
        if any(one.shape != two.shape for one, two in pairs):
            return f"{stored.key}: its latents have another shape than is computed now"
        spread = np.ones((self.spec.stored_channels, 1, 1))
        spread[: self.spec.channels, 0, 0] = self.spec.std
        apart = max(difference(one, two, self.spec.dtype, spread) for one, two in pairs)
        texts = self._captions_apart(stored, captions_of(raw, self.images, self.encoding))
        pair, psnr = self._decoded(kept, views)
        return Audited(stored.key, apart, texts, psnr), pair

    def _raw(self, shard: int, key: str) -> RawSample | None:
        """The raw sample of a key, in the shard of images that this shard of latents is of."""
        number = int(self.latents.manifest.shards[shard].name.partition("-")[0])
        if number >= len(self.images.manifest.shards):
            return None
        keys = [key_of(row) for row in self.images.index(number)]
        return self.images.read(number, keys.index(key)) if key in keys else None

    def _captions_apart(self, stored: RawSample, captions: list[str]) -> float:
        """How far a sample's captions and their vectors are from what they give."""
        tokens = _first_members(stored, self.text.members)
        pooled = _first_members(stored, self.text.pooled_members)
        if len(tokens) != len(captions) or len(pooled) not in (0, len(captions)):
            return NEVER
        vectors = [*pooled, *[None] * (len(tokens) - len(pooled))]
        kept = [StoredText(*one) for one in zip(tokens, vectors, strict=True)]
        pairs = zip(kept, self._texts(captions), strict=True)
        return max(self._text_apart(one, two) for one, two in pairs)

    def _texts(self, captions: list[str]) -> list[StoredText]:
        """What is to be stored of captions."""
        if self.text.stored == "ids":
            ids = self.encoder.text_encoder.tokenize(captions).ids
            return [StoredText(np.ascontiguousarray(one.T), None) for one in ids]
        return self.encoder.captions(captions)

    def _text_apart(self, stored: StoredText, again: StoredText) -> float:
        if self.text.stored == "ids":
            return 0.0 if np.array_equal(stored.tokens, again.tokens) else NEVER
        if (stored.pooled is None) != (again.pooled is None):
            return NEVER
        tokens = difference(stored.tokens, again.tokens, self.text.dtype)
        if stored.pooled is None or again.pooled is None:
            return tokens
        return max(tokens, difference(stored.pooled, again.pooled, self.text.dtype))

    @torch.inference_mode()
    def _decoded(
        self, kept: list[NDArray[Any]], views: list[NDArray[np.uint8]]
    ) -> tuple[Pair, float]:
        """The first view and its decoded mean, and the mean PSNR over all views."""
        means = torch.stack([mean_of(as_tensor(one).float(), self.spec) for one in kept])
        restored = to_pixels(self.encoder.autoencoder.decode(means.to(self.encoder.device)))
        errors = np.square(np.stack(views).astype(np.float64) - restored).mean((1, 2, 3))
        psnr = float(np.mean(10 * np.log10(255.0**2 / np.maximum(errors, 1e-3))))
        return (views[0], restored[0].copy()), psnr  # a copy: the other views can be let go


def difference(
    stored: NDArray[Any],
    again: NDArray[Any],
    dtype: str,
    spread: NDArray[np.float64] | None = None,
) -> float:
    """The largest difference of arrays in multiples of what may be; infinite if they cannot match.

    Args:
        stored: What is stored.
        again: What is computed now.
        dtype: The number format.
        spread: Of such numbers; None is that of what is computed now.
    """
    if stored.shape != again.shape or stored.dtype != again.dtype:
        return NEVER
    one, two = (as_tensor(values).double().numpy() for values in (stored, again))
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        return NEVER  # max of numbers with NaN among them says whatever their order makes of it
    scale = two.std() if spread is None else spread
    allowed = ROUNDINGS * EPS[dtype] * np.abs(two) + SPREAD * scale + LEAST
    apart = np.abs(one - two) / allowed
    return float(apart.max(initial=0)) if np.isfinite(apart).all() else NEVER


def _first_members(sample: RawSample, names: tuple[str, ...]) -> list[NDArray[Any]]:
    """The arrays of the members of these names, of which a sample may have only the first ones."""
    return [load_array(sample.members[name]) for name in names if name in sample.members]
