"""A stand-in for the Hugging Face hub on this machine: what a push and a pull of a model repository ask of it."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_owner"


@dataclass
class Repository:
    """Its files at the newest commit, and who may see it."""

    files: dict[str, bytes] = field(default_factory=dict)
    sha: str = "0" * 40
    private: bool = False
    gated: bool = False
    sizes: dict[str, int | None] = field(default_factory=dict)
    """What the list of files says instead of a file's size."""


@dataclass
class Hub:
    """Where it listens, and what it holds."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Requests, `GET /path`, in order."""


@contextmanager
def hub_on_loopback() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self._path()
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._error(401, None, "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in self.hub.repositories:
                return self._error(409, None, "exists")
            self.hub.repositories[name] = Repository(
                private=bool(asked.get("private")) or asked.get("visibility") == "private"  # older and newer versions
            )
            return self._json({"url": f"{self.hub.endpoint}/{name}", "name": name})
        name, _, action = path.removeprefix("/api/models/").partition("/preupload/")
        if action:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files]
            return self._json({"files": modes})
        name = path.removeprefix("/api/models/").partition("/commit/")[0]
        repository = self.hub.repositories[name]
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                repository.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        repository.sha = hashlib.sha1(body).hexdigest()
        return self._json(
            {"success": True, "commitOid": repository.sha, "commitUrl": f"{self.hub.endpoint}/{name}/commit/x"}
        )

    def do_HEAD(self):
        self._get(with_body=False)

    def do_GET(self):
        self._get(with_body=True)

    def _get(self, *, with_body: bool):
        path = self._path()
        if path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            repository = self._repository(name, revision)
            if repository is None:
                return None
            siblings = [
                {"rfilename": file, "size": repository.sizes.get(file, len(content)), "blobId": "0" * 40}
                for file, content in repository.files.items()
            ]
            return self._json({"id": name, "sha": repository.sha, "private": False, "siblings": siblings, "tags": []})
        name, _, rest = path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        repository = self._repository(name, revision)
        if repository is None:
            return None
        content = repository.files.get(unquote(file))
        if content is None:
            return self._error(404, "EntryNotFound", "no such file")
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": repository.sha}
        return self._answer(200, content, headers, with_body=with_body)

    def _repository(self, name: str, revision: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        is_owner = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not is_owner):
            self._error(404 if is_owner else 401, "RepoNotFound", "Repository not found")
        elif repository.gated and not is_owner:
            self._error(403, "GatedRepo", "Access to the model is restricted")
        elif revision not in ("", "main", repository.sha):
            self._error(404, "RevisionNotFound", "Invalid rev id")
        else:
            return repository
        return None

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        return path

    def _json(self, record: dict) -> None:
        self._answer(200, json.dumps(record).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._answer(status, json.dumps({"error": message}).encode(), {**headers, "Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str], *, with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(content)
