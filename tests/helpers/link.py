"""A network link in front of a server: late and narrow, as far object storage is.

Passes bytes on without understanding them. Run as a program it serves until it is killed.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_CHUNK = 2**17
_FINEST = 0.001  # seconds; shorter waits cost more than they last


@dataclass(slots=True)
class _Meter:
    """Says how long the next bytes have to wait."""

    rate: float  # bytes a second
    free_at: float = 0.0

    def delay(self, num_bytes: int) -> float:
        now = time.monotonic()
        # A pause that came out too long is made up for, within 20 ms.
        self.free_at = max(self.free_at, now - 0.02) + num_bytes / self.rate
        return self.free_at - now


@dataclass(slots=True)
class Link:
    """How far and how wide.

    Args:
        upstream: URL of the server.
        latency: Seconds from a request to the first byte of its answer, on top of the server's.
        connection_rate: Bytes a second that one connection gets.
        total_rate: Bytes a second that all of them get.
        busy: Connections that wait for an answer or receive one.
        most_busy: The most there were.
        port: Where it listens, once it does.
    """

    upstream: str
    latency: float = 0.0
    connection_rate: float = float("inf")
    total_rate: float = float("inf")
    busy: int = 0
    most_busy: int = 0
    port: int = 0
    _total: _Meter = field(init=False)

    def __post_init__(self) -> None:
        self._total = _Meter(self.total_rate)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, listening: threading.Event) -> None:
        server = await asyncio.start_server(self._connect, "127.0.0.1", self.port, limit=_CHUNK)
        self.port = server.sockets[0].getsockname()[1]
        listening.set()
        async with server:
            await server.serve_forever()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = urlsplit(self.upstream)
        above, below = await asyncio.open_connection(address.hostname, address.port, limit=_CHUNK)
        meter = _Meter(self.connection_rate)
        waiting = asyncio.Event()
        there = asyncio.create_task(self._send(reader, below, waiting))
        try:
            with suppress(OSError):
                while content := await above.read(_CHUNK):
                    await _pause(max(meter.delay(len(content)), self._total.delay(len(content))))
                    writer.write(content)
                    await writer.drain()
        finally:
            there.cancel()
            self._settle(waiting)
            writer.close()
            below.transport.abort()

    async def _send(
        self, reader: asyncio.StreamReader, below: asyncio.StreamWriter, waiting: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while content := await reader.read(_CHUNK):
                self._settle(waiting)
                waiting.set()
                self.busy += 1
                self.most_busy = max(self.busy, self.most_busy)
                await asyncio.sleep(self.latency)
                below.write(content)
                await below.drain()
        below.transport.abort()  # the client has hung up

    def _settle(self, waiting: asyncio.Event) -> None:
        self.busy -= waiting.is_set()
        waiting.clear()


async def _pause(seconds: float) -> None:
    if seconds > _FINEST:
        await asyncio.sleep(seconds)


@contextmanager
def open_link(upstream: str, **widths: float) -> Iterator[Link]:
    """A link that serves from a thread of its own."""
    link = Link(upstream, **widths)
    listening = threading.Event()
    loop = asyncio.new_event_loop()

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        left = asyncio.all_tasks(loop)
        for other in left:
            other.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(asyncio.sleep(0.01))  # what was closed above closes in this time
        loop.close()

    task = loop.create_task(link.serve(listening))
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert listening.wait(30)
    try:
        yield link
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


if __name__ == "__main__":
    upstream, port, *widths = sys.argv[1:]
    narrow = Link(upstream, *map(float, widths), port=int(port))
    asyncio.run(narrow.serve(threading.Event()))
