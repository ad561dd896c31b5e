"""What `commit.json` says: the record by which a checkpoint exists, under a hash of its own.

Owns its form. A record that was changed, by one bit or by hand, is refused: its numbers say where
in the data a run goes on, and nothing else would show that they are wrong.
"""

import json
from collections.abc import Mapping
from typing import Any

from conf.errors import RunError
from data.manifest import canonical_json, sha256

COMMIT = "commit.json"
FORMAT = 1  # of checkpoints; another number is for other code
HASH = "sha256"  # of the rest of the record, in its canonical spelling
FIELDS = (
    "files",
    "shapes",
    "samples_seen",
    "updates",
    "skipped",
    "overflows",
    "loss_scale",
    "val_loss",
    "validation",
    "tracker",
)


class BrokenCheckpoint(RunError):
    """A checkpoint's file is missing or is not what was committed."""


def seal(record: Mapping[str, Any]) -> bytes:
    """The content of `commit.json`.

    Args:
        record: All of `FIELDS`, JSON-ready.
    """
    told = {"format": FORMAT, **record}
    return json.dumps({**told, HASH: sha256(canonical_json(told))}, indent=1).encode()


def unseal(content: bytes) -> dict[str, Any]:
    """The record that `seal` was given.

    Raises:
        BrokenCheckpoint: It is no longer what was written, or was written by other code.
    """
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpoint(f"{COMMIT} is damaged: {error}") from None
    if not isinstance(record, dict):
        raise BrokenCheckpoint(f"{COMMIT} is damaged: it is no JSON object")
    if HASH not in record:
        raise BrokenCheckpoint(f"{COMMIT} has no hash of its own: it is damaged, or of other code")
    told = record.pop(HASH)
    if told != sha256(canonical_json(record)):
        raise BrokenCheckpoint(f"{COMMIT} is not what was committed")
    if record.pop("format", None) != FORMAT:
        raise BrokenCheckpoint(f"{COMMIT} is of other code: it is not of format {FORMAT}")
    if lacking := [name for name in FIELDS if name not in record]:
        raise BrokenCheckpoint(f"{COMMIT} lacks the field {lacking[0]}")
    return record
