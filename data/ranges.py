"""Reading many byte ranges of remote files, many requests in flight.

Owns the threads that wait for answers; each span's faults are `Prefix.read_range`'s affair, so that
one that fails is tried again alone.
"""

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.retry import StoppedWaiting, wanted_until
from data.storage import PIECE, PIECES_AT_ONCE, Prefix

AT_ONCE = 64  # requests in flight, over all threads of the process

_making = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes of a file.

    Args:
        name: The file's name within its prefix.
        start: Its first byte.
        length: In bytes.
    """

    name: str
    start: int
    length: int


def read_spans(prefix: Prefix, spans: Sequence[Span]) -> list[memoryview]:
    """The bytes of each span, in the order asked for. May be called from several threads at once.

    Args:
        prefix: Where the files are.
        spans: What to read.

    Returns:
        Read-only views of bytes; shorter than asked for only where a file ends.

    Raises:
        FileNotFoundError: One of the files is not there.
    """
    content: list[memoryview] = [memoryview(b"")] * len(spans)
    places = iter(range(len(spans)))  # each taken once: drawing from a range is one step
    over = threading.Event()

    def read_some() -> None:
        for place in places:
            content[place] = _read(prefix, spans[place], over)

    pool = _pool()
    futures = [pool.submit(read_some) for _ in range(min(AT_ONCE, len(spans)))]
    try:
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
    finally:
        over.set()  # after a failure the others need not go on
        list(places)
    return content


def read_pieces(prefix: Prefix, name: str, size: int) -> Iterator[memoryview]:
    """A whole file from its first byte to byte `size`, several pieces in flight."""
    spans = [Span(name, start, min(PIECE, size - start)) for start in range(0, size, PIECE)]
    pool, over = _pool(), threading.Event()
    ahead = deque(pool.submit(_read, prefix, span, over) for span in spans[:PIECES_AT_ONCE])
    try:
        for span in spans[PIECES_AT_ONCE:]:
            yield _next(prefix, name, ahead)
            ahead.append(pool.submit(_read, prefix, span, over))
        while ahead:
            yield _next(prefix, name, ahead)
    finally:
        over.set()
        for future in ahead:
            future.cancel()


def _next(prefix: Prefix, name: str, ahead: "deque[Future[memoryview]]") -> memoryview:
    """The next piece, unless nobody waits for it any more: a checkpoint may be due first."""
    if prefix.patience.stop.is_set():
        raise StoppedWaiting(f"{prefix.url}/{name}: stopped while it was fetched")
    return ahead.popleft().result()


def read_whole(prefix: Prefix, name: str, size: int) -> memoryview:
    """The first `size` bytes of a file in one piece of memory, fewer if it ends before."""
    memory: Any = np.empty(size, np.uint8)
    content, place = memoryview(memory), 0
    for piece in read_pieces(prefix, name, size):
        content[place : place + len(piece)] = piece
        place += len(piece)
    return content[:place].toreadonly()


def _read(prefix: Prefix, span: Span, over: threading.Event) -> memoryview:
    with wanted_until(over):
        return memoryview(prefix.read_buffer(span.name, span.start, span.length))


def _pool() -> ThreadPoolExecutor:
    """The threads of this process; a forked child has none of its parent's."""
    with _making:
        pid = os.getpid()
        if pid not in _pools:
            _pools.clear()
            _pools[pid] = ThreadPoolExecutor(AT_ONCE, "ranges")
        return _pools[pid]
