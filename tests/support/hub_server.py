"""A server on loopback that speaks the part of the Hugging Face hub's HTTP API that a download uses."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "344f1bfe" * 5


class HubServer(ThreadingHTTPServer):
    """Serves folders as repositories.

    Attributes
    ----------
    repos : dict of str to Path
    cut : dict of str to int
        Files whose connection is cut after so many bytes, once.
    private : str
        A repository that needs the token "right".
    log : list of str
        Method, path, and range where there was one.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Path] = {}
        self.cut: dict[str, int] = {}
        self.private = ""
        self.log: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        asked = self.headers.get("Range")
        self.server.log.append(f"{self.command} {self.path}" + (f" {asked}" if asked else ""))
        path = self.path.partition("?")[0]
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = listing or file
        repo = match and self.server.repos.get(match[1])
        if not repo or (
            match[1] == self.server.private and self.headers.get("Authorization") != "Bearer right"
        ):
            return self._refuse("RepoNotFound")
        if match[2] not in ("main", COMMIT):
            return self._refuse("RevisionNotFound")
        if listing:
            return self._send(json.dumps([_entry(p, repo) for p in sorted(repo.rglob("*"))]).encode(), body)
        if not (repo / file[3]).is_file():
            return self._refuse("EntryNotFound")
        return self._send_file(repo / file[3], file[3], body)

    def _refuse(self, code):
        status = 401 if code == "RepoNotFound" else 404
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, data, body, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _send_file(self, path, name, body):
        data = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Repo_Commit": COMMIT}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked:
            start = int(asked[1])
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._send(data[start:], body, 206, **headers)
        if not body or name not in self.server.cut:
            return self._send(data, body, **headers)
        self._send(data, False, **headers)
        self.wfile.write(data[: self.server.cut.pop(name)])
        self.close_connection = True
        return None


def _entry(path, repo):
    name = path.relative_to(repo).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
    return {"type": "file", "oid": "0" * 40, "size": path.stat().st_size, "path": name}


@contextlib.contextmanager
def hub() -> Iterator[HubServer]:
    """A running server."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
