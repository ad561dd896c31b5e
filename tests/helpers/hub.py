"""A small Hugging Face hub on this machine: real HTTP, as much of it as downloads of files need."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One model repository, `name`, with the files of a folder and the revisions main and v1.

    Attributes:
        fetched: Paths of the files whose content was asked for.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.fetched: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Ends it; calling it twice does no harm."""
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a GET."""
        about, content = f"/api/models/{self.name}", f"/{self.name}/resolve/{COMMIT}/"
        if path in (f"{about}/revision/{revision}" for revision in ("main", "v1", COMMIT)):
            return 200, {}, json.dumps({"id": self.name, "sha": COMMIT}).encode()
        if path == f"{about}/tree/{COMMIT}":
            return 200, {}, json.dumps([*self._tree()]).encode()
        file = self.folder / path.removeprefix(content)
        if path.startswith(content) and file.is_file():
            body = file.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            return 200, {"ETag": etag, "X-Repo-Commit": COMMIT}, body
        known = path.startswith((f"{about}/", f"/{self.name}/"))
        return 404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}, b"{}"

    def _tree(self) -> Iterator[dict[str, str | int]]:
        for file in sorted(self.folder.rglob("*")):
            if file.is_file():
                path, size = file.relative_to(self.folder).as_posix(), file.stat().st_size
                oid = hashlib.sha1(path.encode()).hexdigest()
                yield {"type": "file", "path": path, "size": size, "oid": oid}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                status, headers, body = hub.answer(path)
                if self.command == "GET" and "/resolve/" in path:
                    hub.fetched.append(path.partition(f"/resolve/{COMMIT}/")[2])
                self.send_response(status)
                for name, value in (*headers.items(), ("Content-Length", str(len(body)))):
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler


@contextmanager
def serve_hub(name: str, folder: Path, cache: Path) -> Iterator[Hub]:
    """Has this process take `Hub(name, folder)` for the hub, with a cache of its own."""
    hub = Hub(name, folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", hub.url)
            template = constants.HUGGINGFACE_CO_URL_TEMPLATE.split("/", 3)[3]
            patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{template}")
            patch.setattr(constants, "HF_HUB_CACHE", str(cache))
            patch.setattr(constants, "HF_HUB_OFFLINE", False)
            patch.setenv("NO_PROXY", "127.0.0.1")
            yield hub
    finally:
        hub.stop()
