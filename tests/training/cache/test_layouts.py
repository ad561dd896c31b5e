"""Every layout of a cache holds what the encoders say, and can be read by everyone who reads it."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from conf.compose import compose_config
from conf.schema import CacheCommand
from data.arrays import load_array
from data.collate import image_of, latent_batch
from data.corpus import Corpus
from data.manifest import Manifest
from data.sample import RawSample
from data.spec import EMPTY_POOLED, STORED_AS, numbered
from data.storage import open_prefix
from data.stream import Dataset, open_dataset
from tests.helpers.caches import cache_settings
from tests.helpers.damage import run_verify
from tests.helpers.datasets import BUCKETS
from tests.helpers.raw_images import SIDE, write_raw
from tests.helpers.tiny_bert import tiny_bert
from training.autoencode import load_trained_autoencoder
from training.cache import make_cache
from training.models.text import load_text_encoder
from training.numbers import as_tensor

SHARDS = (4, 0, 7)
MAX_LENGTH = 9
# Relative step between neighbouring numbers, and what the order of summation adds.
STEPS = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 0.0}
SUMMATION = 2e-5
SPREADS = 4.0  # of bf16's computation, in its steps


@dataclass(frozen=True)
class Material:
    """What is cached, and a place for each cache."""

    folder: Path
    autoencoder: Path

    def cache(self, out: Path, *settings: str, images: str = "images") -> list[Manifest]:
        """`ldm cache` with some settings."""
        return make_cache(self.config(out, *settings, images=images))

    def config(self, out: Path, *settings: str, images: str = "images") -> CacheCommand:
        usual = [
            *cache_settings(self.folder / images, self.autoencoder, out),
            f"text_encoder.path={self.folder / 'bert'}",
            f"text_encoder.max_length={MAX_LENGTH}",
            "micro_batch_size=4",
        ]
        return compose_config("cache", [*usual, *settings])


def words(number: int) -> dict[str, Any]:
    """Captions that are equal, empty, too long, one text or several, in fields of the JSON."""
    own = ["a red cat", "", "a dog 12345678901234567890", "a hat", "a red cat", "cat"][number % 6]
    more = ["a hat", "a red cat", "dog"][: number % 4]
    meta = {"original_size": [SIDE, SIDE], "alt": own or "a hat", "more": more}
    return {"txt": own.encode(), "json": json.dumps(meta).encode()}


@pytest.fixture(scope="module")
def material(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("layouts")

    def bucketed(number: int) -> dict[str, Any]:
        bucket = number % len(BUCKETS)
        return {**words(number), "size": BUCKETS[bucket], "bucket": bucket}

    write_raw(folder / "images", SHARDS, bucketed, BUCKETS)
    write_raw(folder / "squares", SHARDS, words)
    tiny_bert(folder / "bert")
    return Material(folder, autoencoder)


# --- what is stored


class Truth:
    """What the encoders say, called directly, one by one."""

    def __init__(self, config: CacheCommand) -> None:
        assert config.encoding.precision.value == "fp32"
        self.config = config
        self.model, _ = load_trained_autoencoder(config.autoencoder.url, "autoencoder.url")

    def latents(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Moments or means of an image (H, W, 3), float32."""
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            moments = self.model.encode(image)[0]
        stores_means = self.config.encoding.store.value == "mean"
        return moments[: self.model.latent_channels] if stores_means else moments

    def views(self, pixels: NDArray[np.uint8], size: tuple[int, int]) -> list[Any]:
        """The pixels of each view; None of a random crop, which is looked at by itself."""
        views: list[Any] = [pixels if pixels.shape[:2] == size else None]
        views += [None] * self.config.encoding.crops
        if not self.config.encoding.flip:
            return views
        return [v for view in views for v in (view, None if view is None else view[:, ::-1])]

    def captions(self, raw: RawSample) -> list[str]:
        if not self.config.encoding.captions:
            return [raw.members["txt"].decode()]
        meta = json.loads(raw.members["json"])
        return [meta["alt"], *meta["more"]]


def assert_close(got: NDArray[Any], wanted: Tensor, dtype: str, what: str) -> None:
    """Equal up to half a step of the number format."""
    assert got.dtype.str == STORED_AS[dtype], what
    values = as_tensor(got).float()
    assert values.shape == wanted.shape, what
    limit = wanted.abs() * STEPS[dtype] / 2 + SUMMATION
    assert bool(((values - wanted).abs() <= limit).all()), what


def check_stored(config: CacheCommand, images: Dataset, latents: Dataset) -> None:
    """Every member of every sample is what the encoders say, and there are no others."""
    truth, encoding = Truth(config), config.encoding
    text_encoder = load_text_encoder(config.text_encoder)
    dtype, spec, text = encoding.dtype.value, latents.manifest.latents, latents.manifest.text
    assert spec is not None and text is not None
    shards = [n for n, shard in enumerate(images.manifest.shards) if shard.samples]
    assert len(shards) == len(latents.manifest.shards)
    for number, source in enumerate(shards):
        assert latents.manifest.shards[number].buckets == images.manifest.shards[source].buckets
        for row in range(images.manifest.shards[source].samples):
            raw, stored = images.read(source, row), latents.read(number, row)
            assert (raw.key, raw.bucket) == (stored.key, stored.bucket)
            wanted = {"json"}
            views = truth.views(image_of(raw), latents.manifest.buckets[raw.bucket])
            for name, pixels in zip(spec.members, views, strict=True):
                wanted.add(name)
                if pixels is not None:
                    got = load_array(stored.members[name])
                    assert_close(got, truth.latents(pixels), dtype, f"{raw.key}.{name}")
            captions = truth.captions(raw)
            vectors = text.pooled_members or [None] * len(captions)
            for name, pooled, caption in zip(text.members, vectors, captions, strict=False):
                wanted |= {name, pooled} - {None}
                got = load_array(stored.members[name])
                if encoding.text.value == "ids":
                    ids = text_encoder.tokenize([caption]).ids[0]
                    assert got.dtype == np.int32
                    np.testing.assert_array_equal(got, ids.T)
                    continue
                alone = text_encoder.encode([caption])
                assert_close(got, alone.embeddings[0], dtype, f"{raw.key}.{name}")
                if config.text_encoder.padding:
                    assert len(got) == MAX_LENGTH
                if pooled:
                    got = load_array(stored.members[pooled])
                    assert alone.pooled is not None
                    assert_close(got, alone.pooled[0], dtype, f"{raw.key}.{pooled}")
            assert {*stored.members} == wanted
            assert json.loads(stored.members["json"])["caption"] == captions[0]
    check_empty(config, latents)


def check_empty(config: CacheCommand, latents: Dataset) -> None:
    text_encoder, text = load_text_encoder(config.text_encoder), latents.manifest.text
    assert text is not None
    empty = load_array(latents.prefix.read(text.empty))
    if config.encoding.text.value == "ids":
        np.testing.assert_array_equal(empty, text_encoder.tokenize([""]).ids[0].T)
        return
    alone = text_encoder.encode([""])
    assert_close(empty, alone.embeddings[0], config.encoding.dtype.value, "the empty caption")
    if alone.pooled is not None:
        pooled = load_array(latents.prefix.read(EMPTY_POOLED))
        assert_close(pooled, alone.pooled[0], config.encoding.dtype.value, "its vector")


def check_statistics(config: CacheCommand, images: Dataset, latents: Dataset) -> None:
    """Mean, spread and errors in the manifest are those of the numbers that are stored."""
    spec = latents.manifest.latents
    assert spec is not None
    rows = [
        (latents.read(number, row), latents.manifest.buckets)
        for number, shard in enumerate(latents.manifest.shards)
        for row in range(shard.samples)
    ]
    values = [
        as_tensor(load_array(sample.members[name])).double().flatten(1)
        for sample, _ in rows
        for name in spec.members
    ]
    stored = torch.cat(values, 1)
    mean, variance = stored[: spec.channels].mean(1), stored[: spec.channels].var(1, correction=0)
    added = torch.zeros(spec.channels, dtype=torch.float64)
    if spec.stored == "moments":
        added = stored[spec.channels :].exp().mean(1)
    np.testing.assert_allclose(spec.mean, mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(spec.std, (variance + added).sqrt(), rtol=1e-9)
    np.testing.assert_allclose(spec.posterior_std, added.sqrt(), rtol=1e-9)
    np.testing.assert_allclose(spec.shift, mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(spec.scale, 1 / (variance + added).sqrt(), rtol=1e-9)
    if config.encoding.dtype.value == "float32":
        assert (spec.rms_error, spec.max_error) == (0, 0)
    elif all(name == "center" or name == "center flipped" for name in spec.views):
        check_errors(config, images, latents)


def check_errors(config: CacheCommand, images: Dataset, latents: Dataset) -> None:
    truth, spec = Truth(config), latents.manifest.latents
    assert spec is not None
    keyed = dict(keyed_samples(images))
    changes = []
    for key, sample in keyed_samples(latents):
        size = latents.manifest.buckets[sample.bucket]
        views = truth.views(image_of(keyed[key]), size)
        for name, pixels in zip(spec.members, views, strict=True):
            stored = as_tensor(load_array(sample.members[name])).float()
            change = (stored - truth.latents(pixels))[: spec.channels]
            changes.append(change.double().flatten())
    change = torch.cat(changes)
    spread = float(np.sqrt(np.mean(np.square(spec.std))))
    assert spec.rms_error == pytest.approx(float(change.square().mean().sqrt()) / spread, rel=1e-2)
    assert spec.max_error == pytest.approx(float(change.abs().max()) / spread, rel=1e-2)
    assert 0 < spec.rms_error < spec.max_error


def keyed_samples(dataset: Dataset) -> Iterator[tuple[str, RawSample]]:
    for number, shard in enumerate(dataset.manifest.shards):
        for row in range(shard.samples):
            sample = dataset.read(number, row)
            yield sample.key, sample


# --- who reads it


def check_webdataset(latents: Dataset) -> None:
    """Stock WebDataset reads the same members, shard by shard."""
    from webdataset import WebDataset

    for number, shard in enumerate(latents.manifest.shards):
        read = list(WebDataset(latents.prefix.path(shard.tar), shardshuffle=False))
        for row, theirs in enumerate(read):
            ours = latents.read(number, row)
            assert theirs["__key__"] == ours.key
            assert {k: v for k, v in theirs.items() if not k.startswith("__")} == ours.members
        assert len(read) == shard.samples


def check_batches(latents: Dataset) -> None:
    """Batches hold what is stored; each place draws a view and a caption, by seed and place."""
    spec, text = latents.manifest.latents, latents.manifest.text
    assert spec is not None and text is not None
    batch_size, epochs = 2, 60
    corpus, again = (Corpus([latents], None, 5, 1, batch_size) for _ in range(2))
    other = Corpus([latents], None, 6, 1, batch_size)
    stored = {
        (number, row): latents.read(number, row).members
        for number, shard in enumerate(latents.manifest.shards)
        for row in range(shard.samples)
    }
    drawn: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    differs = False
    for first in range(0, epochs * latents.manifest.samples // batch_size * batch_size, batch_size):
        places = range(first, first + batch_size)
        batch = latent_batch(corpus, places)
        for row, (place, sample) in enumerate(zip(places, corpus.locate(places), strict=True)):
            members = stored[sample.shard, sample.row]
            view = same_as(batch.moments[row], members, spec.members)
            length = int(batch.text_mask[row].sum())
            assert not batch.text[row, length:].any()
            caption = same_as(batch.text[row, :length], members, text.members)
            if text.pooled_members:
                number = text.members.index(caption)
                pooled = load_array(members[text.pooled_members[number]])
                assert batch.pooled is not None
                np.testing.assert_array_equal(batch.pooled[row], pooled)
            drawn[sample.shard, sample.row].update([view, caption])
            if first < 20 * batch_size:  # alone, in another process's batches, and by another seed
                alone = latent_batch(again, range(place, place + 1))
                np.testing.assert_array_equal(alone.moments[0], batch.moments[row])
                np.testing.assert_array_equal(alone.text[0], batch.text[row, :length])
                where = other.locate(range(place, place + 1))[0]
                differs |= where != sample
    assert differs
    for place, members in stored.items():
        distinct = {
            members[name]: name
            for name in reversed([*spec.members, *text.members])
            if name in members
        }
        assert {*distinct.values()} <= {*drawn[place]}, "a view or a caption is never drawn"


def same_as(got: NDArray[Any], members: dict[str, bytes], names: tuple[str, ...]) -> str:
    """Which of a sample's members an array is."""
    for name in names:
        if name in members:
            wanted = load_array(members[name])
            if wanted.dtype == got.dtype and np.array_equal(wanted, got):
                return name
    raise AssertionError(f"a batch holds what none of {names} holds")


def check(material: Material, out: Path, *settings: str, images: str = "images") -> Dataset:
    """All of it."""
    config = material.config(out, *settings, images=images)
    make_cache(config)
    source = open_dataset(str(material.folder / images), "images")
    latents = open_dataset(str(out), "latents")
    check_stored(config, source, latents)
    check_statistics(config, source, latents)
    check_batches(latents)
    if not config.deduplicate:
        check_webdataset(latents)
    assert run_verify(out) == 0
    return latents


LAYOUTS = [
    f"encoding.dtype={dtype} encoding.store={store} encoding.text={text} {more}".strip()
    for dtype, store, text, more in product(
        ("float16", "bfloat16", "float32"),
        ("moments", "mean"),
        ("embeddings", "ids"),
        ("", "text_encoder.padding=true", "deduplicate=true"),
    )
]
LAYOUTS += [
    "text_encoder.padding=true deduplicate=true",
    "text_encoder.pooled=pooled",
    "text_encoder.pooled=pooled encoding.dtype=bfloat16 encoding.captions=[alt,more]",
    "text_encoder.pooled=pooled deduplicate=true encoding.captions=[alt,more]",
    "text_encoder.pooled=pooled encoding.text=ids",
    "text_encoder.layer=-2",
    "encoding.flip=true",
    "encoding.flip=true encoding.dtype=bfloat16 encoding.store=mean",
    "encoding.crops=2",
    "encoding.crops=1 encoding.flip=true encoding.captions=[alt,more]",
    "encoding.crops=2 encoding.dtype=float32 encoding.store=mean encoding.text=ids",
    "encoding.captions=[alt,more]",
    "encoding.captions=[alt,more] encoding.text=ids deduplicate=true",
    "encoding.captions=[alt,more] encoding.flip=true deduplicate=true text_encoder.padding=true",
]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # WebDataset's own
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_holds_what_the_encoders_say(
    material: Material, tmp_path: Path, layout: str
) -> None:
    check(material, tmp_path / "out", *layout.split())


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_sizes_give_a_dataset_each_in_one_pass(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[tuple[int, int]] = Counter()
    read = Dataset.read

    def counted(self: Dataset, shard: int, row: int) -> RawSample:
        reads[shard, row] += 1
        return read(self, shard, row)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "read", counted)
        manifests = material.cache(out, "sizes=[8,16]", images="squares")
    assert {*reads.values()} == {1}
    assert [manifest.buckets for manifest in manifests] == [((8, 8),), ((16, 16),)]
    assert [manifest.latents.size for manifest in manifests if manifest.latents] == [1, 2]
    source = open_dataset(str(material.folder / "squares"), "images")
    for side in (8, 16):
        config = material.config(out / str(side), images="squares")
        latents = open_dataset(str(out / str(side)), "latents")
        assert run_verify(out / str(side)) == 0
        check_webdataset(latents)
        check_batches(latents)
        if side == SIDE:
            check_stored(config, source, latents)
            check_statistics(config, source, latents)
        assert not (out / str(side) / "claims").exists()
    material.cache(tmp_path / "plain", images="squares")
    plain = open_dataset(str(tmp_path / "plain"), "latents").manifest
    assert [shard.sha256 for shard in plain.shards] == [s.sha256 for s in manifests[1].shards]


def test_random_crops_depend_on_seed_and_zoom_and_without_zoom_are_the_center(
    material: Material, tmp_path: Path
) -> None:
    def crops(name: str, *settings: str) -> list[bytes]:
        out = tmp_path / name
        material.cache(out, "encoding.crops=1", *settings, images="squares")
        latents = open_dataset(str(out), "latents")
        return [sample.members["moments1.npy"] for _, sample in keyed_samples(latents)]

    zoomed = crops("zoomed", "encoding.crop_zoom=2")
    assert crops("again", "encoding.crop_zoom=2", "micro_batch_size=4") == zoomed
    assert crops("seeded", "encoding.crop_zoom=2", "encoding.crop_seed=1") != zoomed
    assert crops("closer", "encoding.crop_zoom=3") != zoomed
    plain = crops("plain", "encoding.crop_zoom=1")
    latents = open_dataset(str(tmp_path / "plain"), "latents")
    assert [sample.members["moments.npy"] for _, sample in keyed_samples(latents)] == plain


def test_deduplicate_stores_equal_captions_once_and_reads_the_same(
    material: Material, tmp_path: Path
) -> None:
    settings = ("encoding.captions=[alt,more]", "text_encoder.pooled=pooled")
    material.cache(tmp_path / "plain", *settings)
    material.cache(tmp_path / "once", *settings, "deduplicate=true")
    plain, once = (open_dataset(str(tmp_path / name), "latents") for name in ("plain", "once"))
    assert [*keyed_samples(plain)] == [*keyed_samples(once)]
    shared = [*numbered("text.npy", 8), *numbered("pooled.npy", 8)]
    for number, shard in enumerate(once.manifest.shards):
        places: dict[bytes, list[int]] = defaultdict(list)
        for row in range(shard.samples):
            offsets = once.open_shard(number).places[row][0]
            members = once.read(number, row).members
            for column, name in enumerate(once.manifest.members):
                if name in shared and name in members:
                    places[members[name]].append(int(offsets[column]))
        assert {len({*found}) for found in places.values()} == {1}
        assert sum(map(len, places.values())) > len(places), "no two captions are equal"
        assert shard.bytes < plain.manifest.shards[number].bytes
        tar = open_prefix(str(tmp_path / "once"), "out").read(shard.tar)
        assert all(tar.count(content) == 1 for content in places)


def test_precision_bf16_is_fp32_up_to_its_coarseness(material: Material, tmp_path: Path) -> None:
    fine, coarse = tmp_path / "fine", tmp_path / "coarse"
    material.cache(fine, "encoding.dtype=float32")
    material.cache(coarse, "encoding.dtype=float32", "encoding.precision=bf16")
    pairs = zip(
        *(keyed_samples(open_dataset(str(out), "latents")) for out in (fine, coarse)), strict=True
    )
    differs = False
    for (_, one), (_, other) in pairs:
        for name in ("moments.npy", "text.npy"):
            a, b = load_array(one.members[name]), load_array(other.members[name])
            assert a.dtype == b.dtype == np.float32
            limit = SPREADS * STEPS["bfloat16"] * max(float(np.abs(a).max()), 1)
            np.testing.assert_allclose(a, b, rtol=0, atol=limit)
            differs |= not np.array_equal(a, b)
    assert differs
