"""Finished shards to storage, and at the end the manifest that says what their numbers mean."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from conf.enums import TextStore
from conf.errors import RunError
from conf.schema import CacheCommand
from data.addressed import create_shard, sweep
from data.arrays import dump_array
from data.manifest import Manifest, canonical_json, sha256
from data.sample import META, RawSample
from data.say import say
from data.shard import ShardEntry, commit_dataset
from data.sift import SKIPPED, check_budget, skipped_of
from data.spec import EMPTY_POOLED, TextSpec
from data.storage import Prefix
from data.stream import Dataset
from training.cache.assemble import Sample, ShardWork
from training.cache.plan import Target, caption_slots, members_of
from training.cache.statistics import merged, shard_statistics
from training.encode import Encoder
from training.encoders import Autoencoder, autoencoder_origin, text_encoder_origin
from training.meaning import latent_spec, text_spec


def write_shard(
    config: CacheCommand, encoder: Encoder, targets: Sequence[Target], work: ShardWork
) -> list[ShardEntry]:
    """Commit a shard to each target; what somebody else has finished meanwhile counts."""
    members = members_of(config.encoding, encoder.text_encoder)
    samples = [work.samples[row] for row in sorted(work.samples)]
    bad = [one.record() for one in sorted(work.bad, key=lambda one: one.row)]
    counts = {"truncated": work.truncated, "empty": work.empty, "enlarged": work.enlarged}
    channels = encoder.autoencoder.latent_channels
    texts = tuple(name for name in members if name.startswith(("text", "tokens", "pooled")))
    entries = []
    for number, target in enumerate(targets):
        views = [view for sample in samples for view in sample.views[number]]
        entries.append(
            create_shard(
                target.out,
                target.names[work.number],
                [_raw_sample(sample, number, members) for sample in samples],
                members,
                len(target.buckets),
                texts if config.deduplicate else (),
                statistics=shard_statistics(views, channels) if views else None,
                **({"bad": bad} if bad else {}),
                **counts,
            )
        )
    return entries


def _raw_sample(sample: Sample, target: int, members: tuple[str, ...]) -> RawSample:
    """A sample's members: views, captions, their vectors and JSON, in the order of `members`."""
    views = [view.values for view in sample.views[target]]
    tokens = [text.tokens for text in sample.texts]
    pooled = [text.pooled for text in sample.texts if text.pooled is not None]
    by_kind = {"moments": views, "mean": views, "text": tokens, "tokens": tokens, "pooled": pooled}
    content = {META: _json(sample.meta)}
    for extension in members:
        name = extension.partition(".")[0]
        kind = name.rstrip("0123456789")
        number = int(name[len(kind) :] or 0)
        if kind in by_kind and number < len(by_kind[kind]):
            content[extension] = dump_array(by_kind[kind][number])
    return RawSample(sample.key, content, sample.bucket)


def _json(meta: dict[str, Any]) -> bytes:
    try:
        return canonical_json(meta)
    except UnicodeEncodeError:  # halves of characters, which JSON can name and UTF-8 cannot
        return json.dumps(meta, sort_keys=True, separators=(",", ":")).encode()


def finish(
    config: CacheCommand,
    data: Dataset,
    autoencoder: Autoencoder,
    encoder: Encoder,
    target: Target,
    entries: Sequence[ShardEntry],
) -> Manifest:
    """Write the manifest of a dataset whose shards are all there.

    Raises:
        RunError: No sample is left.
        UserError: Too many of all ranks' samples are bad.
    """
    shards = tuple(entry.shard for entry in entries if entry.shard.samples)
    if not shards:
        raise RunError(f"{data.prefix.url}: none of its images can be decoded")
    skipped = skipped_of(entry.extra for entry in entries)
    check_budget(skipped, data.manifest.samples, config.max_bad_share)
    if skipped.samples:
        target.out.write(
            SKIPPED, json.dumps(skipped.to_dict(), indent=1, sort_keys=True).encode() + b"\n"
        )
    sums = [entry.extra["statistics"] for entry in entries if entry.extra["statistics"]]
    finished = Manifest(
        kind="latents",
        buckets=target.buckets,
        members=members_of(config.encoding, encoder.text_encoder),
        shards=shards,
        identity=sha256(canonical_json(target.settings)),
        settings=target.settings,
        parent=data.manifest.fingerprint,
        latents=latent_spec(
            config.encoding, autoencoder, target.buckets, merged(sums), skipped.samples
        ),
        text=_text_spec(config, encoder, target.out),
        origins={
            "images": data.prefix.absolute,
            "autoencoder": autoencoder_origin(config.autoencoder),
            "text_encoder": text_encoder_origin(config.text_encoder),
        },
    )
    commit_dataset(target.out, finished)
    sweep(target.out, finished)
    return finished


def _text_spec(config: CacheCommand, encoder: Encoder, out: Prefix) -> TextSpec:
    encoding = config.encoding
    spec = text_spec(encoder.text_encoder, encoding, caption_slots(encoding))
    if encoding.text is TextStore.ids:
        ids = encoder.text_encoder.tokenize([""]).ids[0]
        return replace(spec, empty_sha256=_pinned(out, spec.empty, dump_array(ids.T.copy())))
    stored = encoder.captions([""])[0]
    spec = replace(spec, empty_sha256=_pinned(out, spec.empty, dump_array(stored.tokens)))
    if stored.pooled is None:
        return spec
    pooled = _pinned(out, EMPTY_POOLED, dump_array(stored.pooled))
    return replace(spec, empty_pooled_sha256=pooled)


def _pinned(out: Prefix, name: str, content: bytes) -> str:
    """The hash of a file that is created once; another process's may have other last bits."""
    try:
        out.create(name, content)
    except FileExistsError:
        content = out.read(name)
    return sha256(content)


def say_counts(config: CacheCommand, entries: Sequence[ShardEntry]) -> dict[str, Any]:
    """Tell what a user should know of the samples; the same as figures for the summary."""
    counts: dict[str, Any] = {
        name: sum(entry.extra[name] for entry in entries)
        for name in ("truncated", "empty", "enlarged")
    }
    limit = config.text_encoder.max_length
    for name, words in (
        ("truncated", f"captions were cut to {limit} tokens"),
        ("empty", "captions are empty: they are trained on as the unconditional case"),
        ("enlarged", "images are smaller than their size and were enlarged"),
    ):
        if counts[name]:
            say(f"cache: {counts[name]:,} {words}")
    skipped = skipped_of(entry.extra for entry in entries)
    if skipped.samples:
        say(f"cache: {skipped}, see {SKIPPED}")
        counts["bad"] = skipped.kinds
    return counts
