"""`ldm verify audit=N`: whether stored latents and texts are what their images and captions give.

Checksums show that bytes are those that were written. That the right numbers were written, with the
weights and the preprocessing that the manifest names, only encoding again can show.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from conf.encoding import EncodingConfig
from conf.errors import UserError
from conf.schema import VerifyCommand
from data.arrays import load_array
from data.collate import image_of
from data.image import BadImage, encode_png
from data.progress import progress
from data.sample import RawSample
from data.say import one_line, say
from data.shard import finished_shards
from data.storage import open_prefix
from data.stream import Dataset, open_dataset
from data.tar import key_of
from data.verify.sample import drawn_samples
from data.views import make_view
from training.cache.read import captions_of
from training.cache.statistics import merged
from training.encode import Encoder
from training.encoders import (
    Autoencoder,
    autoencoder_config,
    load_autoencoder,
    text_encoder_config,
)
from training.generate import grid, to_pixels
from training.models.text import TextEncoder, load_text_encoder
from training.numbers import as_tensor
from training.step import mean_of

# How far what is encoded again may be from what is stored: some roundings of the number format, and
# a thousandth of the spread for other shapes of batches and other devices.
ROUNDINGS = 4
SPREAD = 1e-3
EPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-20}
SHOWN = 8
PICTURE, RESULT = "audit.png", "audit.json"


@dataclass(frozen=True, slots=True)
class Audited:
    """One sample, encoded again.

    Args:
        key: Its key.
        latents: The largest difference to what is stored, in multiples of what may be.
        text: The same for its captions.
        psnr: Of the decoded mean of each view against the view, in dB.
        pictures: The first view and what is decoded of it.
    """

    key: str
    latents: float
    text: float
    psnr: float
    pictures: tuple[NDArray[np.uint8], NDArray[np.uint8]]


def audit(config: VerifyCommand) -> int:
    """Encode some samples of a dataset of latents again, and say how they compare.

    Returns:
        0 if all of them are what is stored, else 1.

    Raises:
        UserError: It is no dataset of latents, or what it was made from is not there.
    """
    latents = open_dataset(config.data.url, "latents")
    auditor = _Auditor(config, latents)
    wrong = [*auditor.changed, *_statistics_faults(latents)]
    drawn = drawn_samples(
        [shard.samples for shard in latents.manifest.shards], config.audit, config.seed
    )
    found: list[Audited] = []
    with progress("audit", sum(map(len, drawn.values())), unit="samples") as meter:
        for shard, rows in drawn.items():
            for row in rows.tolist():
                one = auditor.sample(shard, row)
                if isinstance(one, Audited):
                    found.append(one)
                    wrong += _faults(one)
                else:
                    wrong.append(one)
                meter.advance(1)
    for line in wrong:
        say(one_line(f"broken: {line}"))
    _say(found, latents)
    _write(config, found, wrong)
    return 1 if wrong else 0


class _Auditor:
    """What a dataset of latents was made with, found again."""

    def __init__(self, config: VerifyCommand, latents: Dataset) -> None:
        self.latents = latents
        manifest = latents.manifest
        assert manifest.latents is not None and manifest.text is not None
        self.spec, self.text = manifest.latents, manifest.text
        origins = manifest.origins
        if not {"images", "autoencoder", "text_encoder"} <= {*origins}:
            raise UserError(
                f"data.url={config.data.url}",
                "does not say what it was made from",
                "cache again, or leave audit out",
            )
        schema = OmegaConf.structured(EncodingConfig)
        merged = OmegaConf.merge(schema, manifest.settings["encoding"])
        self.encoding: EncodingConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
        setting = "data.url of the cache" if config.images is None else "images"
        self.images = open_dataset(config.images or origins["images"], "images", setting)
        self.autoencoder = load_autoencoder(autoencoder_config(origins["autoencoder"]))
        self.text_encoder = load_text_encoder(text_encoder_config(origins["text_encoder"]))
        views = len(self.spec.views)
        self.encoder = Encoder(self.autoencoder, self.text_encoder, self.encoding, views)
        self.encoder.most_captions = 1  # those of one sample at a time
        self.changed = list(_changed(latents, self.images, self.autoencoder, self.text_encoder))

    def sample(self, shard: int, row: int) -> Audited | str:
        """Encode one sample again; a line if it cannot be."""
        stored = self.latents.read(shard, row)
        raw = self._raw(shard, stored.key)
        if raw is None:
            return f"{stored.key}: is not among the images of its shard"
        try:
            image = image_of(raw)
        except BadImage as error:
            return f"{stored.key}: its image cannot be decoded ({error})"
        size = self.latents.manifest.buckets[stored.bucket]
        views = [
            make_view(image, size, self.encoding, number, raw.key)
            for number in range(len(self.spec.views))
        ]
        again = self.encoder.latents(views).result()
        kept = [load_array(stored.members[name]) for name in self.spec.members]
        if not again.finite.all():
            return f"{stored.key}: its latents are not finite in {self.spec.dtype}"
        if any(one.shape != two.shape for one, two in zip(kept, again.values, strict=True)):
            return f"{stored.key}: its latents have another shape than is computed now"
        apart = max(self._apart(one, two) for one, two in zip(kept, again.values, strict=True))
        pictures, psnr = self._decoded(kept, views)
        return Audited(stored.key, apart, self._text_apart(stored, raw), psnr, pictures)

    def _raw(self, shard: int, key: str) -> RawSample | None:
        """The raw sample of a key, in the shard of images that this shard of latents is of."""
        number = int(self.latents.manifest.shards[shard].name.partition("-")[0])
        if number >= len(self.images.manifest.shards):
            return None
        keys = [key_of(row) for row in self.images.index(number)]
        return self.images.read(number, keys.index(key)) if key in keys else None

    def _apart(self, stored: NDArray[Any], again: NDArray[Any]) -> float:
        one, two = (as_tensor(values).double().numpy() for values in (stored, again))
        channels = self.spec.channels
        spread = np.ones(len(one))
        spread[:channels] = self.spec.std
        allowed = ROUNDINGS * EPS[self.spec.dtype] * np.abs(two) + SPREAD * spread[:, None, None]
        difference = np.abs(one - two) / allowed
        return float(difference.max()) if np.isfinite(difference).all() else float("inf")

    def _text_apart(self, stored: RawSample, raw: RawSample) -> float:
        captions = captions_of(raw, self.images, self.encoding)
        names = self.text.members[: len(captions)]
        kept = [load_array(stored.members[name]) for name in names if name in stored.members]
        if len(kept) != len(captions):
            return float("inf")
        if self.text.stored == "ids":
            ids = self.text_encoder.tokenize(captions).ids
            same = (np.array_equal(one, two.T) for one, two in zip(kept, ids, strict=True))
            return 0.0 if all(same) else float("inf")
        again = [one.tokens for one in self.encoder.captions(captions)]
        pairs = zip(kept, again, strict=True)
        return max(_text_difference(one, two, self.text.dtype) for one, two in pairs)

    @torch.inference_mode()
    def _decoded(
        self, kept: list[NDArray[Any]], views: list[NDArray[np.uint8]]
    ) -> tuple[tuple[NDArray[np.uint8], NDArray[np.uint8]], float]:
        """The first view and its decoded mean, and the mean PSNR over all views."""
        means = torch.stack([mean_of(as_tensor(one).float(), self.spec) for one in kept])
        restored = to_pixels(self.encoder.autoencoder.decode(means.to(self.encoder.device)))
        errors = np.square(np.stack(views).astype(np.float64) - restored).mean((1, 2, 3))
        psnr = float(np.mean(10 * np.log10(255.0**2 / np.maximum(errors, 1e-3))))
        return (views[0], restored[0]), psnr


def _text_difference(stored: NDArray[Any], again: NDArray[Any], dtype: str) -> float:
    if stored.shape != again.shape:
        return float("inf")
    one, two = (as_tensor(values).double().numpy() for values in (stored, again))
    allowed = ROUNDINGS * EPS[dtype] * np.abs(two) + SPREAD * two.std()
    return float((np.abs(one - two) / allowed).max())


def _changed(
    latents: Dataset, images: Dataset, autoencoder: Autoencoder, text_encoder: TextEncoder
) -> Iterator[str]:
    """What is no longer what the dataset was made from."""
    manifest = latents.manifest
    assert manifest.latents is not None and manifest.text is not None
    for name, now, then in (
        ("images", images.manifest.fingerprint, manifest.parent),
        ("autoencoder", autoencoder.fingerprint, manifest.latents.autoencoder),
        ("text encoder", text_encoder.fingerprint, manifest.text.encoder),
    ):
        if now != then:
            was = f"it is {now[:12]}, was {str(then)[:12]}"
            yield f"{name}: not what the latents were made from ({was})"


def _statistics_faults(latents: Dataset) -> Iterator[str]:
    """Whether the manifest's statistics are those of the shards, and one shard's those of it."""
    manifest = latents.manifest
    spec = manifest.latents
    assert spec is not None
    names = [shard.name.rpartition("-")[0] for shard in manifest.shards]
    entries = finished_shards(latents.prefix, names)
    if len(entries) < len(names):
        yield f"{len(names) - len(entries)} shards have no record of their statistics in index/"
        return
    now = merged([entries[name].extra["statistics"] for name in names])
    for name, value in now.items():
        then = getattr(spec, name)
        if not np.allclose(then, value, rtol=1e-9, atol=0):
            yield f"{name} of the manifest is not that of its shards"


def _faults(one: Audited) -> Iterator[str]:
    if one.latents > 1:
        yield f"{one.key}: its latents differ {one.latents:,.1f} times more than rounding explains"
    if one.text > 1:
        yield f"{one.key}: its text differs {one.text:,.1f} times more than rounding explains"


def _say(found: list[Audited], latents: Dataset) -> None:
    if not found:
        return
    psnr = np.array([one.psnr for one in found])
    worst = found[int(psnr.argmin())]
    spec = latents.manifest.latents
    assert spec is not None
    say(
        f"audit: {len(found):,} samples encoded again; decoded they have a PSNR of "
        f"{psnr.mean():.2f} dB, the least {worst.psnr:.2f} dB ({worst.key}); {spec.dtype} changes "
        f"latents by {spec.rms_error:.1e} of their spread, at most {spec.max_error:.1e}"
    )


def _write(config: VerifyCommand, found: list[Audited], wrong: list[str]) -> None:
    if config.out is None:
        return
    out = open_prefix(config.out, "out")
    samples = [
        {"key": one.key, "latents": one.latents, "text": one.text, "psnr": one.psnr}
        for one in found
    ]
    out.write(RESULT, json.dumps({"samples": samples, "broken": wrong}, indent=1).encode() + b"\n")
    same = [one for one in found if one.pictures[0].shape == found[0].pictures[0].shape]
    rows = []
    for first in range(0, min(len(same), 4 * SHOWN), SHOWN):
        part = same[first : first + SHOWN]
        part = [*part, *[part[-1]] * (min(SHOWN, len(same)) - len(part))]
        rows += [np.stack([one.pictures[side] for one in part]) for side in (0, 1)]
    if rows:
        out.write(PICTURE, encode_png(grid(np.concatenate(rows), columns=rows[0].shape[0])))
        say(f"audit: wrote {config.out}/{PICTURE}: rows of images, each above what is decoded")
