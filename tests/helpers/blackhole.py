"""A host that takes every connection and never answers."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Blackhole:
    """Listens on a port of this machine until it is closed."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard = b""  # what was sent to it, over all connections
        self._held: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work, *arguments) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._held.append(self._listener.accept()[0])
                self._start(self._listen, self._held[-1])

    def _listen(self, connection: socket.socket) -> None:
        with suppress(OSError):
            while content := connection.recv(65536):
                self.heard += content

    def close(self) -> None:
        for one in (self._listener, *self._held):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()


@contextmanager
def blackhole() -> Iterator[Blackhole]:
    """One for the length of a block."""
    hole = Blackhole()
    try:
        yield hole
    finally:
        hole.close()
