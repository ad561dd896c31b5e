"""Reading a checkpoint's safetensors files: whole to check them, and else only what is wanted.

A file is never held in memory as a whole. What is read by ranges was checked before, by `check`.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from data.storage import PIECE, PIECES_AT_ONCE, Prefix
from training.engine.commit import BrokenCheckpoint
from training.engine.fragments import Fragment
from training.engine.staging import FORMATS

A = TypeVar("A")
B = TypeVar("B")
DTYPES = {name: dtype for dtype, name in FORMATS.items()}


@dataclass(frozen=True, slots=True)
class Run:
    """Where a run of a flattened tensor lies.

    Args:
        start: Its first element within the tensor.
        length: Its elements.
        dtype: Their number format.
        file: The file that holds it.
        offset: Its first byte there.
    """

    start: int
    length: int
    dtype: torch.dtype
    file: str
    offset: int


# By parameter and state.
Runs = Mapping[tuple[str, str], Sequence[Run]]


def check(folder: Prefix, name: str, size: int, digest: str, on_piece: Callable[[], None]) -> None:
    """Hold a file to what was committed, in pieces of 8 MiB.

    Args:
        folder: The checkpoint.
        name: Of the file.
        size: In bytes.
        digest: SHA-256, in hex.
        on_piece: Called for each piece that was read.

    Raises:
        BrokenCheckpoint: It is missing, or is another.
    """
    found, length = hashlib.sha256(), 0
    try:
        # One byte more is asked for: a file that is too long shows it.
        starts = range(0, size + 1, PIECE)
        for piece in in_order(lambda x: folder.read_buffer(name, x, PIECE), starts):
            found.update(piece)
            length += len(piece)
            on_piece()
    except FileNotFoundError:
        raise BrokenCheckpoint(f"{name} is missing") from None
    if length != size or found.hexdigest() != digest:
        raise BrokenCheckpoint(f"{name} is not what was committed")


def find_runs(folder: Prefix, names: Iterable[str]) -> Runs:
    """What files hold, and where, by their headers.

    Source: The format's specification, github.com/huggingface/safetensors.
    """
    runs: dict[tuple[str, str], list[Run]] = {}
    for name in names:
        length = int.from_bytes(folder.read_range(name, 0, 8), "little")
        header: dict[str, Any] = json.loads(folder.read_range(name, 8, length))
        for text, entry in header.items():
            place = Fragment.parse(text)
            (count,), (begin, _) = entry["shape"], entry["data_offsets"]
            run = Run(place.start, count, DTYPES[entry["dtype"]], name, 8 + length + begin)
            runs.setdefault((place.parameter, place.state), []).append(run)
    return runs


def read_run(folder: Prefix, runs: Sequence[Run], start: int, length: int) -> Tensor:
    """Elements `start` to `start + length` of a flattened tensor (length,), from runs of it.

    Raises:
        BrokenCheckpoint: A file has become shorter since it was checked.
    """
    dtype = runs[0].dtype
    result = torch.empty(length, dtype=dtype)
    room = memoryview(result.view(torch.uint8).numpy())
    filled = 0
    for run in runs:
        low, high = max(start, run.start), min(start + length, run.start + run.length)
        if low < high:
            size = (high - low) * dtype.itemsize
            offset = run.offset + (low - run.start) * dtype.itemsize
            content = folder.read_buffer(run.file, offset, size)
            if len(content) != size:
                raise BrokenCheckpoint(f"{run.file} has become shorter since it was checked")
            room[(low - start) * dtype.itemsize :][:size] = content
            filled += high - low
    assert filled == length, f"{filled} of {length} elements found"
    return result


def in_order(work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Results of `work` in the order of `items`; a few more are made than were taken."""
    with ThreadPoolExecutor(PIECES_AT_ONCE) as pool:
        waiting: deque[Future[B]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= PIECES_AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # an error need not wait for what has not begun
            pool.shutdown(cancel_futures=True)
