"""What can be wrong with what is cached, and with where it goes: said by name, and never half."""

import json
import re
import shutil
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conf.errors import RunError, UserError
from data import storage
from data.arrays import load_array
from data.collate import image_of
from data.manifest import NAME, Manifest
from data.stream import open_dataset
from data.tar import CorruptShard
from tests.helpers.cache_processes import visible_files
from tests.helpers.cache_stage import Stage, build_stage, edit_json
from tests.helpers.damage import manifest_of, run_verify
from tests.helpers.datasets import files_of
from tests.helpers.latents import checkpoint_of
from tests.helpers.raw_images import SIDE, sample_of, write_raw
from tests.helpers.zoo.images import IMAGES
from training import encode
from training.models.autoencoder import KLAutoencoder
from training.models.text import TextEncoder

# Those of the zoo that are refused and made in no time.
SLOW = ("bytes", "scans", "animated", "texts", "5001x5000", "webp of 38")
BAD = {
    name: (build, reason)
    for name, _, build, reason in IMAGES
    if reason and not any(word in name for word in SLOW)
}


@pytest.fixture
def stage(autoencoder: Path, tmp_path: Path) -> Stage:
    """A stage whose images are to be made worse."""
    return build_stage(tmp_path, autoencoder)


def summary(stage: Stage) -> dict[str, Any]:
    return json.loads((stage.latents / "summary.json").read_text())[-1]


def with_bad(stage: Stage, bad: dict[int, bytes], shards: Sequence[int] = (5, 4)) -> None:
    stage.write_images(shards, lambda number: {"png": bad[number]} if number in bad else {})


# --- bad images


def test_the_first_bad_image_stops_it_by_name(stage: Stage) -> None:
    with_bad(stage, {6: b"no image"})
    with pytest.raises(UserError, match=r"max_bad_share=0.* 1 of 9 .*s0006.*is no PNG") as stopped:
        stage.cache()
    assert "\n" not in str(stopped.value)
    assert not (stage.latents / NAME).exists()


def test_every_bad_animal_is_skipped_by_name_and_the_others_are_as_without_it(stage: Stage) -> None:
    names = list(BAD)
    bad = {2 * number + 1: BAD[name][0]() for number, name in enumerate(names)}
    count = 2 * len(names) + 1
    shards = [8] * (count // 8) + [count % 8] * bool(count % 8)
    with_bad(stage, {}, shards)
    stage.cache()
    whole = {key: members for key, members in members_of(stage.latents)}
    shutil.rmtree(stage.latents)
    with_bad(stage, bad, shards)
    manifest = stage.cache("max_bad_share=0.5")
    assert manifest.latents is not None
    assert manifest.latents.skipped == len(bad)
    assert manifest.samples == count - len(bad)
    skipped = json.loads((stage.latents / "skipped.json").read_text())["bad"]
    assert [one["key"] for one in skipped] == [f"s{number:04d}" for number in bad]
    for one, name in zip(skipped, names, strict=True):
        assert one["kind"] == "image"
        assert one["key"] in one["what"]
        assert re.search(BAD[name][1], one["what"])
    kept = dict(members_of(stage.latents))
    assert [*kept] == [key for key in whole if int(key[1:]) not in bad]
    for key, members in kept.items():
        assert members == whole[key]
    assert summary(stage)["bad"] == {"image": len(bad)}
    assert run_verify(stage.latents) == 0


def members_of(folder: Path) -> list[tuple[str, dict[str, bytes]]]:
    data = open_dataset(str(folder), "latents")
    return [
        (sample.key, dict(sample.members))
        for number, shard in enumerate(data.manifest.shards)
        for sample in (data.read(number, row) for row in range(shard.samples))
    ]


def test_more_bad_images_than_may_be_stop_it_and_a_larger_share_goes_on(stage: Stage) -> None:
    with_bad(stage, {1: b"", 100: b"", 101: b""}, (40, 40, 40))
    with pytest.raises(UserError, match=r"max_bad_share=0\.01.* of 120 .*image"):
        stage.cache("max_bad_share=0.01")
    kept = {file: file.stat().st_mtime_ns for file in stage.latents.rglob("*.tar")}
    assert kept
    stage.cache("max_bad_share=0.03")
    assert all(file.stat().st_mtime_ns == then for file, then in kept.items())
    assert run_verify(stage.latents) == 0


def test_a_shard_of_bad_images_alone_is_left_out(stage: Stage) -> None:
    """More of them than are read at once."""
    with_bad(stage, dict.fromkeys(range(3, 23), b""), (3, 20, 2))
    manifest = stage.cache("max_bad_share=0.9")
    assert [shard.samples for shard in manifest.shards] == [3, 2]
    assert run_verify(stage.latents) == 0


def test_a_dataset_of_bad_images_alone_is_none(stage: Stage) -> None:
    with_bad(stage, dict.fromkeys(range(9), b""))
    with pytest.raises(RunError, match="none of its images can be decoded"):
        stage.cache("max_bad_share=1")
    assert not (stage.latents / NAME).exists()


def test_training_refuses_an_incomplete_cache_unless_told_to_take_it(stage: Stage) -> None:
    with_bad(stage, {4: b""})
    stage.cache("max_bad_share=0.5")
    with pytest.raises(UserError, match=r"lacks 1 samples.*data\.incomplete=true"):
        stage.train()
    assert not stage.run.exists()
    stage.train("data.incomplete=true", "train.samples=8")
    assert checkpoint_of(stage.run).progress.samples_seen == 8


# --- sizes and captions


def test_images_that_the_autoencoder_cannot_divide_are_refused(stage: Stage) -> None:
    stage.write_images(change=lambda number: {"size": (20, 20)}, buckets=((20, 20),))
    with pytest.raises(UserError, match=r"data\.url=.*20x20.*multiples of 8, such as 16"):
        stage.cache()
    with pytest.raises(UserError, match=r"sizes=12.*12x12.*multiples of 8"):
        stage.cache("sizes=[12]")
    assert not stage.latents.exists()


def test_a_size_that_makes_no_whole_pixels_is_refused(stage: Stage) -> None:
    buckets = ((16, 16), (8, 24))
    stage.write_images(change=lambda number: {"size": buckets[0]}, buckets=buckets)
    with pytest.raises(UserError, match=r"sizes=9.*8 pixels.*8x24"):
        stage.cache("sizes=[9]")
    assert not stage.latents.exists()


def test_small_images_are_counted(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    small = {1: (8, 8), 3: (16, 9), 5: (9, 16), 6: (24, 24)}
    stage.write_images(change=lambda number: {"size": small.get(number, (SIDE, SIDE))})
    stage.cache()
    assert summary(stage)["enlarged"] == 3
    assert "3 images are smaller than their size and were enlarged" in capsys.readouterr().out


def test_empty_and_cut_captions_are_counted(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = {0: b"", 2: b"  \n", 3: b"", 5: b"a cat " * 20, 8: b"zzzzzzzzzzzzzzzzzzzz"}
    stage.write_images(change=lambda n: {"txt": captions[n]} if n in captions else {})
    stage.cache()
    counts = summary(stage)
    assert (counts["empty"], counts["truncated"]) == (3, 2)
    said = capsys.readouterr().out
    assert "3 captions are empty" in said
    assert "2 captions were cut to 16 tokens" in said
    empty = load_array((stage.latents / "empty.text.npy").read_bytes())
    stored = dict(members_of(stage.latents))
    for number in (0, 2, 3):
        np.testing.assert_array_equal(load_array(stored[f"s{number:04d}"]["text.npy"]), empty)


def test_a_caption_field_that_a_sample_lacks_is_named(stage: Stage) -> None:
    with pytest.raises(UserError, match=r"caption .*s0000: has no text in the fields .*'alt'"):
        stage.cache("encoding.captions=[alt]")
    assert not (stage.latents / NAME).exists()


def test_a_sample_without_a_caption_is_skipped_within_the_share(stage: Stage) -> None:
    meta = json.dumps({"original_size": [SIDE, SIDE], "alt": "a hat"}).encode()
    stage.write_images(change=lambda number: {"json": meta} if number else {})
    stage.cache("encoding.captions=[alt]", "max_bad_share=0.2")
    (bad,) = json.loads((stage.latents / "skipped.json").read_text())["bad"]
    assert (bad["key"], bad["kind"]) == ("s0000", "caption")


def test_half_a_character_is_stored_and_encoded(stage: Stage) -> None:
    """JSON can name one, and UTF-8 has no bytes for it."""
    meta = b'{"original_size": [16, 16], "alt": "a hat \\ud83d", "note": "\\ud83d"}'
    stage.write_images(change=lambda number: {"json": meta})
    stage.cache("encoding.captions=[alt]")
    stored = open_dataset(str(stage.latents), "latents").read(0, 0)
    assert json.loads(stored.members["json"])["note"] == "\ud83d"
    assert json.loads(stored.members["json"])["caption"] == "a hat ?"


def test_of_more_captions_than_can_be_the_first_are_taken(stage: Stage) -> None:
    alt = [f"a hat {number}" for number in range(9)]
    meta = json.dumps({"original_size": [SIDE, SIDE], "alt": alt}).encode()
    stage.write_images(change=lambda number: {"json": meta})
    stage.cache("encoding.captions=[alt]")
    stored = open_dataset(str(stage.latents), "latents").read(0, 0)
    assert json.loads(stored.members["json"])["captions"] == alt[:8]
    assert "text7.npy" in stored.members


# --- what the encoders give


def spoiled_encode(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor, Tensor], None]
) -> None:
    """Has the autoencoder's moments spoiled, given the images (B, 3, H, W) that they are of."""
    whole = KLAutoencoder.encode

    def encode(self: KLAutoencoder, images: Tensor) -> Tensor:
        moments = whole(self, images).clone()
        spoil(images, moments)
        return moments

    monkeypatch.setattr(KLAutoencoder, "encode", encode)


def test_one_latent_that_is_not_finite_is_named_and_what_was_done_is_kept(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.write_images((3, 3, 3, 3))
    stage.cache("micro_batch_size=2")
    wanted = {*visible_files(stage.latents)}
    shutil.rmtree(stage.latents)
    key = torch.from_numpy(image_pixels(10)).permute(2, 0, 1) / 127.5 - 1

    def spoil(images: Tensor, moments: Tensor) -> None:
        for row, image in enumerate(images):
            if torch.allclose(image, key, atol=1e-3):
                moments[row, 3, 0, 0] = float("nan")

    with monkeypatch.context() as patch:
        spoiled_encode(patch, spoil)
        with pytest.raises(RunError, match=r"moments of s0010 are not finite.*weights"):
            stage.cache("micro_batch_size=2")
    assert not (stage.latents / NAME).exists()
    tars = [*stage.latents.rglob("*.tar")]
    assert 1 <= len(tars) <= 3
    stage.cache("micro_batch_size=2")
    assert {*visible_files(stage.latents)} == wanted
    assert run_verify(stage.latents) == 0


def image_pixels(number: int) -> Any:
    return image_of(sample_of(number)).copy()


def test_moments_that_overflow_float16_are_named_with_the_remedy(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled_encode(monkeypatch, lambda images, moments: moments[:, 0].fill_(1e6))
    with pytest.raises(RunError, match=r"s0000 overflow float16.*encoding\.dtype=float32"):
        stage.cache()
    stage.cache("encoding.dtype=float32", f"out={stage.folder / 'other'}")


def test_embeddings_that_are_not_finite_are_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TextEncoder.embed

    def embed(self: TextEncoder, *arguments: Any, **more: Any) -> Any:
        encoding = whole(self, *arguments, **more)
        encoding.embeddings[0, 0, 0] = float("inf")
        return encoding

    monkeypatch.setattr(TextEncoder, "embed", embed)
    with pytest.raises(RunError, match=r"text encoder's embeddings of s\d+ are not finite"):
        stage.cache()
    assert not (stage.latents / NAME).exists()


# --- where it goes


def test_no_room_is_said_before_any_work(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    monkeypatch.setattr(KLAutoencoder, "encode", lambda *a: pytest.fail("it was at work"))
    with pytest.raises(UserError, match=r"out=.* MB are free and about .* MB are needed"):
        stage.cache()
    assert not files_of(stage.latents)


def test_a_place_with_files_of_others_is_refused_and_left_alone(stage: Stage) -> None:
    stage.latents.mkdir()
    (stage.latents / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"out=.*is not empty \(it holds letter\.txt\)"):
        stage.cache()
    assert files_of(stage.latents) == {"letter.txt": b"dear"}


@pytest.mark.parametrize("there", ["images", "latents of others", "a claim of a run"])
def test_a_place_that_holds_something_else_is_refused_and_left_alone(
    stage: Stage, there: str
) -> None:
    if there == "images":
        write_raw(stage.latents, (2,))
    elif there == "latents of others":
        stage.write_images((2, 2))
        stage.cache()
        stage.write_images()
    else:
        stage.latents.mkdir()
        (stage.latents / "settings.json").write_text('{"command":"train"}')
    before = files_of(stage.latents)
    with pytest.raises(UserError, match=r"out=.*holds other work"):
        stage.cache()
    assert files_of(stage.latents) == before


def test_a_place_below_a_file_is_refused(stage: Stage) -> None:
    (stage.folder / "file").write_text("")
    with pytest.raises(UserError, match=r"out=.*Not a directory"):
        stage.cache(f"out={stage.folder / 'file' / 'out'}")


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("data.url={folder}/nowhere", r"data\.url=.*nowhere.*holds no dataset"),
        ("data.url=pipe:cat", r"data\.url='pipe:cat': is not a URL"),
        ("data.url={folder}/latents", r"data\.url=.*dataset of latents, and images are needed"),
        ("autoencoder.url={folder}/nowhere", r"autoencoder\.url=.*nowhere"),
        ("autoencoder.url={folder}/images", r"autoencoder\.url=.*images"),
        ("text_encoder.path={folder}/nowhere", r"text_encoder\.path=.*nowhere"),
        ("out=ftp://nobody/x", r"out='ftp://nobody/x'"),
    ],
)
def test_what_cannot_be_read_or_written_is_named(stage: Stage, setting: str, match: str) -> None:
    stage.cache()
    told = setting.format(folder=stage.folder)
    out = [] if told.startswith("out=") else [f"out={stage.folder / 'out'}"]
    with pytest.raises(UserError, match=match):
        stage.cache(told, *out)
    assert not (stage.folder / "out").exists()


def test_damaged_images_are_named_and_the_rest_is_kept(stage: Stage) -> None:
    stage.write_images((3, 3, 3))
    shard = manifest_of(stage.images).shards[2]
    tar = stage.images / shard.tar
    whole = tar.read_bytes()
    broken = bytearray(whole)
    broken[whole.index(b"\x89PNG") + 60] ^= 1
    tar.write_bytes(broken)
    with pytest.raises(CorruptShard, match=r"00002\.tar.*s0006"):
        stage.cache()
    assert not (stage.latents / NAME).exists()
    tar.write_bytes(whole)
    stage.cache()
    assert run_verify(stage.latents) == 0


def test_a_damaged_entry_is_named(stage: Stage) -> None:
    stage.cache()
    (stage.latents / NAME).unlink()
    entry = next((stage.latents / "index").glob("00000-*.json"))
    entry.write_bytes(entry.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"{entry.name}: is damaged.*remove it"):
        stage.cache()
    entry.unlink()
    stage.cache()
    assert run_verify(stage.latents) == 0


def test_a_manifest_of_images_that_was_edited_is_refused(stage: Stage) -> None:
    edit_json(stage.images / NAME, lambda raw: raw["shards"][0].update(sha256="0" * 64))
    with pytest.raises(UserError, match="changed after it was written"):
        stage.cache()
    assert not stage.latents.exists()


# --- memory


def out_of_memory_above(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Has the autoencoder run out of memory above a size; gives the sizes that it was given."""
    sizes: list[int] = []

    def spoil(images: Tensor, moments: Tensor) -> None:
        sizes.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    spoiled_encode(monkeypatch, spoil)
    return sizes


def test_out_of_memory_halves_the_batch_says_so_and_ends_as_with_that_size(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.cache("micro_batch_size=2")
    wanted = visible_files(stage.latents)
    shutil.rmtree(stage.latents)
    sizes = out_of_memory_above(monkeypatch, 2)
    capsys.readouterr()
    stage.cache("micro_batch_size=8")
    said = capsys.readouterr().out
    assert "out of memory with 8 images of 16x16 at once, going on with 4" in said
    assert "out of memory with 4 images of 16x16 at once, going on with 2" in said
    assert said.count("out of memory") == 2
    assert sizes[:3] == [8, 4, 2]
    assert {*sizes[2:]} == {2}
    assert visible_files(stage.latents) == wanted


def test_no_memory_for_one_image_is_the_end(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_above(monkeypatch, 0)
    with pytest.raises(RunError, match="not memory enough to encode one of the images"):
        stage.cache("micro_batch_size=2")


def test_another_error_of_the_encoder_is_not_taken_for_want_of_memory(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(images: Tensor, moments: Tensor) -> None:
        raise RuntimeError("shapes do not fit")

    spoiled_encode(monkeypatch, spoil)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        stage.cache()


def test_out_of_memory_with_captions_halves_them(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(encode, "CAPTIONS_AT_ONCE", 8)
        stage.cache()
    wanted = visible_files(stage.latents)
    shutil.rmtree(stage.latents)
    whole = TextEncoder.embed

    def embed(self: TextEncoder, ids: Sequence[Any], *more: Any) -> Any:
        if len(ids) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, ids, *more)

    monkeypatch.setattr(TextEncoder, "embed", embed)
    capsys.readouterr()
    made: Manifest = stage.cache()
    assert "out of memory with 16 captions at once, going on with 8" in capsys.readouterr().out
    assert made.samples == 9
    assert visible_files(stage.latents) == wanted
