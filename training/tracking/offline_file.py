"""How far W&B's own files on this machine go: the last step that an earlier process gave them.

A .wandb file is a log of protobuf records in blocks, as LevelDB frames them.
Source: https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK = 32_768
FILE_HEADER = 7
RECORD_HEADER = struct.Struct("<IHB")  # checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def last_step(folder: Path, run_id: str) -> int | None:
    """The last step of a run's history in the files below `folder`; None without a file of it.

    -1 is a file without any.
    """
    files = [*folder.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb")]
    steps = (step for file in files for step in steps_of(file.read_bytes()))
    return max(steps, default=-1) if files else None


def steps_of(content: bytes) -> Iterator[int]:
    """The steps of the history in one file; a file that was cut ends where it was cut."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    for entry in _entries(content):
        record = Record()
        try:
            record.ParseFromString(entry)
        except DecodeError:
            return
        if record.WhichOneof("record_type") == "history":
            yield record.history.step.num


def _entries(content: bytes) -> Iterator[bytes]:
    place, pending = FILE_HEADER, b""
    while place + RECORD_HEADER.size <= len(content):
        left = BLOCK - place % BLOCK
        if left < RECORD_HEADER.size:  # the rest of a block is padding
            place += left
            continue
        _, length, kind = RECORD_HEADER.unpack_from(content, place)
        place += RECORD_HEADER.size
        part = content[place : place + length]
        if kind not in (FULL, FIRST, MIDDLE, LAST) or len(part) < length:
            return
        place += length
        pending = part if kind in (FULL, FIRST) else pending + part
        if kind in (FULL, LAST):
            yield pending
