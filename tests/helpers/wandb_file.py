"""Reads back what W&B wrote offline: protobuf records in LevelDB's log framing."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32_768
FILE_HEADER = 7  # ":W&B", a magic number and a version
RECORD_HEADER = struct.Struct("<IHB")  # checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(file: Path) -> Iterator[Record]:
    """The records of one .wandb file."""
    content = file.read_bytes()
    place, pending = FILE_HEADER, b""
    while place + RECORD_HEADER.size <= len(content):
        left = BLOCK - place % BLOCK
        if left < RECORD_HEADER.size:  # the rest of a block is padding
            place += left
            continue
        _, length, kind = RECORD_HEADER.unpack_from(content, place)
        if kind == 0:
            return
        place += RECORD_HEADER.size
        pending += content[place : place + length]
        place += length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(pending)
            pending = b""
            yield record


def read_history(folder: Path) -> list[dict[str, Any]]:
    """All logged lines of the runs below `folder`, in order, without W&B's own values."""
    lines = []
    for file in sorted(folder.rglob("*.wandb"), key=lambda file: file.stat().st_mtime):
        for record in read_records(file):
            if record.WhichOneof("record_type") == "history":
                lines.append(_nested(record.history.item))
    return lines


def _nested(items: Any) -> dict[str, Any]:
    """Items of a history record as the dictionary that was logged, without W&B's own values."""
    line: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = line
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return {key: value for key, value in line.items() if not key.startswith("_")}


def read_run_ids(folder: Path) -> set[str]:
    """The ids of the runs below `folder`."""
    return {
        record.run.run_id
        for file in folder.rglob("*.wandb")
        for record in read_records(file)
        if record.WhichOneof("record_type") == "run"
    }
