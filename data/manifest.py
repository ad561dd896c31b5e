"""The manifest: what a dataset holds, what its numbers mean, and the hashes that pin both."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from conf.errors import UserError
from data.spec import (
    LatentSpec,
    TextSpec,
    is_count,
    is_hash,
    parse_spec,
    require,
)
from data.storage import Prefix

FORMAT = 2
NAME = "manifest.json"
MAX_MANIFEST_BYTES = 2**26  # 150,000 shards
MAX_INDEX_BYTES = 2**26
MAX_SIDE = 2**16
EMPTY_TEXT = "empty.text.npy"  # the embedding of the empty caption


def sha256(content: bytes | memoryview) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(content).hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with one spelling for one value, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse_record(content: bytes, where: str, remedy: str) -> dict[str, Any]:
    """A JSON object that one of our commands wrote.

    Raises:
        UserError: It is none any more.
    """
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(where, f"is damaged ({error})", remedy) from error
    if not isinstance(record, dict):
        raise UserError(where, "is damaged (it is no JSON object)", remedy)
    return record


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard as the manifest pins it.

    Args:
        name: Unique in the dataset.
        tar: Name of the tar within the dataset, or within `Manifest.tars`.
        buckets: How many of its samples are in each of the dataset's buckets.
        bytes: Of the tar.
        sha256: Of the tar.
        index_sha256: Of the index.
    """

    name: str
    tar: str
    buckets: tuple[int, ...]
    bytes: int
    sha256: str
    index_sha256: str

    @property
    def samples(self) -> int:
        """Samples over all buckets."""
        return sum(self.buckets)

    @property
    def index(self) -> str:
        """Name of the index within the dataset."""
        return f"index/{self.name}.npy"


def square_side(buckets: Iterable[tuple[int, int]]) -> int:
    """Side of the square bucket; every dataset that we make has one."""
    return next(height for height, width in buckets if height == width)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A dataset.

    Args:
        kind: `images` or `latents`.
        buckets: Height and width in pixels that images have, or that latents were made of.
        members: Extensions of a sample's members, in the order of the index's columns.
        shards: The shards, in order.
        identity: Hash of what the dataset was asked to be: source, settings, parents. Known before
            the work starts.
        settings: The same in words, for people.
        parent: Fingerprint of the dataset that this one was made from.
        latents: For latents, what the moments mean.
        text: For latents, what the text embeddings mean.
        tars: URL of the prefix that holds the tars, where they are somebody else's and were only
            indexed. No part of the fingerprint: the same tars elsewhere are the same dataset.
        origins: URLs of what it was made from, as hints; they carry no weight in the fingerprint.
    """

    kind: str
    buckets: tuple[tuple[int, int], ...]
    members: tuple[str, ...]
    shards: tuple[Shard, ...]
    identity: str
    settings: dict[str, Any]
    parent: str | None = None
    latents: LatentSpec | None = None
    text: TextSpec | None = None
    tars: str | None = None
    origins: dict[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Samples over all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash of the content: every shard's hash and what the numbers mean, but no URL."""
        content = asdict(self)
        for hint in ("origins", "settings", "identity", "tars"):
            del content[hint]
        if self.text is not None and not self.text.classes:  # of words: as it always was
            del content["text"]["classes"]
        # Of tars that were only indexed it decides which captions they have, and no byte shows it.
        if field := self.settings.get("caption_field"):
            content["caption_field"] = field
        return sha256(canonical_json({"format": FORMAT, **content}))

    def to_json(self) -> bytes:
        """The file as it is stored."""
        content = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "samples": self.samples,
            **asdict(self),
        }
        return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def parse_shard(raw: dict[str, Any]) -> Shard:
    """A shard's record, from JSON."""
    return Shard(**{**raw, "buckets": tuple(raw["buckets"])})


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Read a manifest and check that it is whole.

    Raises:
        UserError: It is no manifest, of a newer format, says what cannot be, or its fingerprint is
            not that of its content.
    """
    try:
        raw = json.loads(content)
        if raw["format"] != FORMAT:
            raise UserError(
                where, f"has format {raw['format']!r:.20}", f"this version reads format {FORMAT}"
            )
        old = raw["latents"]
        if isinstance(old, dict) and "autoencoder" in old and "stored" not in old:
            raise UserError(where, "holds latents of an earlier version", "cache them again")
        manifest = Manifest(
            kind=raw["kind"],
            buckets=tuple((int(height), int(width)) for height, width in raw["buckets"]),
            members=tuple(raw["members"]),
            shards=tuple(parse_shard(shard) for shard in raw["shards"]),
            identity=raw["identity"],
            settings=raw["settings"],
            parent=raw["parent"],
            latents=parse_spec(LatentSpec, raw["latents"]),
            text=parse_spec(TextSpec, raw["text"]),
            tars=raw["tars"],
            origins=raw["origins"],
        )
        _require_sound(manifest)
        right = manifest.fingerprint == raw["fingerprint"]
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        wrong = f"is no manifest ({str(error)[:200]})"
        raise UserError(where, wrong, "make the dataset again") from error
    if not right:
        raise UserError(where, "was changed after it was written", "make the dataset again")
    return manifest


def _require_sound(manifest: Manifest) -> None:
    """Refuse what no command writes, for whoever made a dataset is not to be trusted.

    Raises:
        ValueError: A value is of another kind, or names what lies outside of the dataset.
    """
    words = (manifest.identity, *manifest.members)
    hints = (manifest.parent, manifest.tars, manifest.settings.get("caption_field"))
    sides = [side for bucket in manifest.buckets for side in bucket]
    names = [name for shard in manifest.shards for name in (shard.name, shard.tar)]
    require(manifest.kind in ("images", "latents"), f"kind is {manifest.kind!r}")
    require(all(isinstance(word, str) for word in words), "names are no texts")
    require(all(isinstance(hint, str | None) for hint in hints), "hints are no texts")
    require(len({*manifest.members}) == len(manifest.members), "two members of one name")
    require(all(is_count(side, MAX_SIDE) and side for side in sides), "buckets of no size")
    require(all(_is_inside(name) for name in names), "names that leave the dataset")
    require(len({*names}) == len({*names[::2]}) + len({*names[1::2]}) == len(names), "names twice")
    least = 3 + 20 * len(manifest.members)  # bytes of a sample in the index
    for shard in manifest.shards:
        counts = (*shard.buckets, shard.bytes)
        require(all(is_count(count) for count in counts), f"{shard.name!r} has no such counts")
        require(len(shard.buckets) == len(manifest.buckets), f"{shard.name!r} has other buckets")
        fits = shard.samples * least <= MAX_INDEX_BYTES
        require(fits, f"{shard.name!r} has more samples than an index can have")
        require(is_hash(shard.sha256) and is_hash(shard.index_sha256), "hashes that are none")
    _require_sound_origins(manifest.origins)


def _require_sound_origins(origins: object) -> None:
    """Refuse hints that lead nowhere: a URL of images, and the settings of two encoders."""
    require(isinstance(origins, dict), "origins that are none")
    assert isinstance(origins, dict)
    require(isinstance(origins.get("images", ""), str), "images that are no URL")
    for name, needed in (("autoencoder", ("kind",)), ("text_encoder", ("path", "joined"))):
        origin = origins.get(name, dict.fromkeys(needed))
        right = isinstance(origin, dict) and {*needed} <= {*origin}
        require(right, f"an origin of the {name} that is none")


def _is_inside(name: object) -> bool:
    """Whether a name can be that of a file in the dataset, or in a folder of it."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    return not name.startswith("/") and ".." not in name.split("/")


def read_manifest(prefix: Prefix) -> Manifest:
    """The manifest of a dataset of any kind.

    Raises:
        FileNotFoundError: There is no dataset.
        UserError: As `parse_manifest`.
    """
    return parse_manifest(prefix.read(NAME, MAX_MANIFEST_BYTES), f"{prefix.url}/{NAME}")


def load_manifest(prefix: Prefix, kind: str) -> Manifest:
    """The manifest of a dataset of the wanted kind.

    Raises:
        UserError: There is no dataset, or one of another kind.
    """
    try:
        manifest = read_manifest(prefix)
    except FileNotFoundError:
        raise UserError(
            f"{prefix.setting}={prefix.url}",
            f"holds no dataset (there is no {NAME})",
            "give the `out` of a finished `ldm shard` or `ldm cache`",
        ) from None
    if kind not in ("any", manifest.kind):
        command = {"images": "shard", "latents": "cache"}[kind]
        raise UserError(
            f"{prefix.setting}={prefix.url}",
            f"is a dataset of {manifest.kind}, and {kind} are needed",
            f"give the `out` of `ldm {command}`",
        )
    return manifest
