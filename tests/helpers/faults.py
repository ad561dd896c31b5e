"""A proxy in front of an S3 server that fails on purpose, seeded and counted.

Owns the faults and their shares. Knows nothing of S3 but the wording of its errors.
"""

import http.client
import random
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_ERROR = "<Error><Code>{code}</Code><Message>{message}</Message></Error>"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}


class Fault(Enum):
    """What can happen to a request."""

    INTERNAL = "500"
    UNAVAILABLE = "503"
    SLOW_DOWN = "503 SlowDown"
    RESET = "the connection ends before the request gets through"
    LOST = "the request gets through and its answer is lost"
    BROKEN = "the connection ends within the body"
    SHORT = "a shorter body with headers that fit it"
    CUT = "a shorter body with a length that fits it and the range of the whole"
    LATE = "the answer comes late"
    EXPIRED = "the token has expired"
    DENIED = "access is denied"


_ANSWERS = {
    Fault.INTERNAL: (500, "InternalError", "We encountered an internal error."),
    Fault.UNAVAILABLE: (503, "ServiceUnavailable", "Please try again."),
    Fault.SLOW_DOWN: (503, "SlowDown", "Please reduce your request rate."),
    Fault.EXPIRED: (400, "ExpiredToken", "The provided token has expired."),
    Fault.DENIED: (403, "AccessDenied", "Access Denied"),
}

# Shares: a tenth of the requests fails, and a tenth of the bodies comes short.
A_TENTH_AND_A_TENTH = {
    Fault.INTERNAL: 0.02,
    Fault.UNAVAILABLE: 0.02,
    Fault.SLOW_DOWN: 0.02,
    Fault.RESET: 0.02,
    Fault.LOST: 0.02,
    Fault.SHORT: 0.03,
    Fault.CUT: 0.04,
    Fault.BROKEN: 0.03,
}


class FaultyProxy:
    """Passes requests on to `upstream`, but for those that fail.

    Args:
        upstream: URL of the real server.
        seed: Of the draws; which of several threads meets a fault is up to their timing.

    Attributes:
        shares: The share of requests that meets each fault.
        planned: Faults of the next requests, one each, before any draw; None for none.
        expired_keys: Access keys whose token counts as expired.
        delay: Seconds that a late answer takes longer.
        done: How often each fault happened. BROKEN, SHORT and CUT happen to bodies of objects only.
        served: Requests that came, faulty ones included.
    """

    def __init__(self, upstream: str, seed: int) -> None:
        address = urlsplit(upstream)
        self.upstream = (address.hostname, address.port)
        self.shares: dict[Fault, float] = {}
        self.planned: deque[Fault | None] = deque()
        self.expired_keys: set[str] = set()
        self.delay = 0.1
        self.done: Counter[Fault] = Counter()
        self.served = 0
        self._draws = random.Random(seed)
        self._lock = threading.Lock()
        self._server: _Server | None = _Server(self, 0)
        self.port = self._server.server_address[1]
        self._server.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Refuse connections and end those that are open; a second call does nothing."""
        if self._server:
            self._server.stop()
        self._server = None

    @contextmanager
    def gone(self, seconds: float) -> Iterator[None]:
        """Be away from now on for some seconds."""
        self.stop()
        back = threading.Timer(seconds, self._come_back)
        back.start()
        try:
            yield
        finally:
            back.join()

    def draw(self, authorization: str) -> Fault | None:
        """The fault of the next request."""
        with self._lock:
            self.served += 1
            if any(f"Credential={key}/" in authorization for key in self.expired_keys):
                return Fault.EXPIRED
            if self.planned:
                return self.planned.popleft()
            place = self._draws.random()
            for fault, share in self.shares.items():
                place -= share
                if place < 0:
                    return fault
            return None

    def count(self, fault: Fault) -> None:
        with self._lock:
            self.done[fault] += 1

    def _come_back(self) -> None:
        self._server = _Server(self, self.port)
        self._server.start()


class _Server(ThreadingHTTPServer):
    """One listening socket and the connections that came over it."""

    def __init__(self, proxy: FaultyProxy, port: int) -> None:
        self.proxy = proxy
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        for connection in list(self.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def handle_any(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = proxy.draw(self.headers.get("Authorization", ""))
        if fault in _ANSWERS:
            proxy.count(fault)
            return self._refuse(*_ANSWERS[fault])
        if fault is Fault.RESET:
            proxy.count(fault)
            return self._hang_up()
        if fault is Fault.LATE:
            proxy.count(fault)
            time.sleep(proxy.delay)
        status, headers, content = self._ask_upstream(body)
        if fault is Fault.LOST:
            proxy.count(fault)
            return self._hang_up()
        if fault in (Fault.SHORT, Fault.CUT, Fault.BROKEN) and self._is_object(
            status, headers, content
        ):
            proxy.count(fault)
            return self._cut(fault, status, headers, content)
        return self._answer(status, headers, content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

    def _ask_upstream(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.server.proxy.upstream)
        try:
            # The host stays as it was: the signature covers it.
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            headers = [pair for pair in answer.getheaders() if pair[0].lower() not in _HOP_BY_HOP]
            return answer.status, headers, content
        finally:
            connection.close()

    def _is_object(self, status: int, headers: list[tuple[str, str]], content: bytes) -> bool:
        kinds = [value for name, value in headers if name.lower() == "content-type"]
        is_xml = any("xml" in kind for kind in kinds)
        return self.command == "GET" and status in (200, 206) and len(content) > 1 and not is_xml

    def _cut(
        self, fault: Fault, status: int, headers: list[tuple[str, str]], content: bytes
    ) -> None:
        """Half of a body: with its true length and then nothing, or as if that were all."""
        half = content[: len(content) // 2]
        if fault is Fault.BROKEN:
            self._answer(status, headers, half)
            return self._hang_up()
        telling = ("content-length", "x-amz-checksum")  # all but the ETag
        if fault is Fault.SHORT:
            telling += ("content-range",)
        rest = [pair for pair in headers if not pair[0].lower().startswith(telling)]
        return self._answer(status, [*rest, ("Content-Length", str(len(half)))], half)

    def _refuse(self, status: int, code: str, message: str) -> None:
        content = _ERROR.format(code=code, message=message).encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))]
        self._answer(status, headers, content)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status == 204 or "content-length" not in {name.lower() for name, _ in headers}:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Nothing goes to standard error."""
