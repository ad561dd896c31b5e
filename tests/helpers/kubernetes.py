"""As much of Kubernetes' API as kubectl needs to make, show and remove the objects of a job.

Objects are kept, and names are unique. One that is removed in the foreground stays, marked, until
the test says that its pods have gone; then what it owns goes too. Nothing is run.
"""

import json
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

RESOURCES = {
    "api/v1": {"pods": "Pod", "services": "Service"},
    "apis/batch/v1": {"jobs": "Job"},
    "apis/networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "apis/jobset.x-k8s.io/v1alpha2": {"jobsets": "JobSet"},
}
VERBS = ["create", "delete", "get", "list", "patch"]
PATH = re.compile(r"/(?P<group>.+)/namespaces/[^/]+/(?P<what>\w+)(/(?P<name>[^/]+))?(?P<log>/log)?")


class Cluster:
    """What such a server holds.

    Args:
        url: Where it answers.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.refused: set[str] = set()  # kinds that a quota does not allow, as `services`

    def add_pod(self, job: str, log: str) -> None:
        """A pod that runs."""
        meta = {"name": f"{job}-0", "namespace": "lab", "labels": {"app.kubernetes.io/name": job}}
        spec = {"containers": [{"name": "ldm", "image": "image"}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
        self.objects["pods", f"{job}-0"] = {**pod, "status": {"phase": "Running"}}
        self.logs[f"{job}-0"] = log

    def pods_end(self) -> None:
        """And with them the objects that only waited for that, and what these own."""
        gone = [key for key, one in self.objects.items() if "deletionTimestamp" in one["metadata"]]
        uids = [self.objects.pop(key)["metadata"]["uid"] for key in gone]
        for key, one in list(self.objects.items()):
            owners = one["metadata"].get("ownerReferences", [])
            if key[0] == "pods" or any(owner["uid"] in uids for owner in owners):
                del self.objects[key]

    def answer(self, method: str, url: str, body: bytes) -> tuple[int, Any]:
        """The status, and the object or text, with which it answers a request."""
        path, query = urlsplit(url).path, parse_qs(urlsplit(url).query)
        found = PATH.fullmatch(path)
        if path.startswith("/openapi/v3"):
            return _openapi(path.removeprefix("/openapi/v3").strip("/"))
        if found is None:
            return _discovery(path.strip("/"))
        what, name = found["what"], found["name"]
        sent = yaml.safe_load(body) if body else {}
        if found["log"]:
            return 200, self.logs[name]
        if method in ("POST", "PATCH"):
            return self._write(method, what, sent)
        if name is None:
            label = query["labelSelector"][0].partition("=")[2]
            items = [one for (kind, _), one in self.objects.items() if kind == what]
            items = [one for one in items if label in one["metadata"]["labels"].values()]
            kind = RESOURCES[found["group"]][what]
            return 200, {
                "apiVersion": found["group"].partition("/")[2],
                "kind": f"{kind}List",
                "metadata": {},
                "items": items,
            }
        if (what, name) not in self.objects:
            return 404, _status(404, "NotFound", f'{what} "{name}" not found')
        there = self.objects[what, name]
        if method == "DELETE" and sent.get("propagationPolicy") == "Foreground":
            there["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        elif method == "DELETE":
            del self.objects[what, name]
        return 200, there

    def _write(self, method: str, what: str, sent: dict[str, Any]) -> tuple[int, Any]:
        name = sent["metadata"]["name"]
        if what in self.refused:
            return 403, _status(403, "Forbidden", f'{what} "{name}" is forbidden: exceeded quota')
        if method == "POST" and (what, name) in self.objects:
            return 409, _status(409, "AlreadyExists", f'{what} "{name}" already exists')
        meta = {**sent["metadata"], "uid": str(uuid.uuid4())}
        self.objects[what, name] = {**sent, "metadata": meta}
        return 201, self.objects[what, name]


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    head = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return {**head, "message": message, "reason": reason, "code": code}


def _discovery(path: str) -> tuple[int, Any]:
    if path == "api":
        return 200, {"kind": "APIVersions", "versions": ["v1"]}
    if path == "apis":
        groups = []
        for one in (one for one in RESOURCES if one.startswith("apis/")):
            _, name, version = one.split("/")
            told = {"groupVersion": f"{name}/{version}", "version": version}
            groups.append({"name": name, "versions": [told], "preferredVersion": told})
        return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path == "api/v1/namespaces/lab":
        return 200, {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "lab"}}
    if path in RESOURCES:
        told = [
            {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": VERBS}
            for name, kind in RESOURCES[path].items()
        ]
        version = path.partition("/")[2]
        return 200, {"kind": "APIResourceList", "groupVersion": version, "resources": told}
    return 404, _status(404, "NotFound", "there is no such path")


def _openapi(path: str) -> tuple[int, Any]:
    """That the server says which fields are wrong, so kubectl need not look for them itself."""
    if not path:
        told = {one: {"serverRelativeURL": f"/openapi/v3/{one}"} for one in RESOURCES}
        return 200, {"paths": told}
    paths = {}
    for name, kind in RESOURCES[path].items():
        group, version = ["", *path.split("/")[1:]][-2:]
        what = {"group": group, "version": version, "kind": kind}
        field = [{"name": "fieldValidation", "in": "query"}]
        patch = {"x-kubernetes-group-version-kind": what, "parameters": field, "responses": {}}
        paths[f"/{path}/namespaces/{{namespace}}/{name}/{{name}}"] = {"patch": patch}
    return 200, {"openapi": "3.0.0", "info": {"title": "lab", "version": "1"}, "paths": paths}


@contextmanager
def kubernetes_api(config: Path) -> Iterator[Cluster]:
    """Such a server on this machine.

    Args:
        config: Where kubectl's file that leads there is written.
    """

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, told = cluster.answer(self.command, self.path, body)
            text = told.encode() if isinstance(told, str) else json.dumps(told).encode()
            self.send_response(code)
            kind = "text/plain" if isinstance(told, str) else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    cluster = Cluster(f"http://127.0.0.1:{server.server_port}")
    config.write_text(yaml.safe_dump(kubectl_config(cluster.url)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def kubectl_config(server: str) -> dict[str, Any]:
    """Of a user who knows one cluster."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "clusters": [{"name": "lab", "cluster": {"server": server}}],
        "users": [{"name": "lab", "user": {}}],
    }
