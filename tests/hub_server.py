"""A small Hugging Face hub on loopback for tests: model and dataset repositories served from local directories.

It answers what huggingface_hub, transformers and datasets ask for (`resolve/`, `api/models|datasets/...`, `revision`,
`tree`, `paths-info`; HEAD with ETag and X-Repo-Commit; Range requests) and injects faults. Use the `hub` fixture in
process, or `hub.environment()` for a command in a subprocess.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import metadata_load

CHUNK = 1 << 20
LARGE = (".safetensors", ".npz", ".parquet", ".bin", ".gguf", ".pt")
"""Suffixes that the hub keeps in LFS, whose ETag is the sha256 of the content."""

_RESOLVE = re.compile(r"^/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
_API = re.compile(r"^/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?$")


@dataclass
class Fault:
    """What goes wrong with the requests whose path matches `pattern`; `times` of them, or all (None).

    status: answer with this status (and `code` as X-Error-Code) instead of content.
    cut_after: close the connection after this many bytes of a body.
    body: serve these bytes in place of the file's, under the file's own ETag and, if they fit, its size.
    """

    pattern: str
    status: int | None = None
    code: str | None = None
    cut_after: int | None = None
    body: bytes | None = None
    methods: tuple[str, ...] = ("GET", "HEAD", "POST")
    times: int | None = None

    def applies(self, method: str, path: str) -> bool:
        """Whether this fault strikes now; counts down."""
        if method not in self.methods or self.times == 0 or not re.search(self.pattern, path):
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class Repository:
    """One repository: a directory per revision; `gate` is the token whose owner accepted its license."""

    revisions: dict[str, Path] = field(default_factory=dict)
    gate: str | None = None
    private: bool = False

    def find(self, revision: str) -> tuple[str, Path] | None:
        """Commit and directory of a branch, tag or commit."""
        for name, directory in self.revisions.items():
            commit = commit_of(directory)
            if revision in (name, commit):
                return commit, directory
        return None


class Hub:
    """A running hub; `url` is its HF_ENDPOINT."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request."""
        self.tokens: list[str | None] = []
        """Token of every request."""
        self.connections: list[socket.socket] = []
        hub = self

        class Handler(_Handler):
            owner = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def publish(
        self, repo_id: str, directory: Path, *, kind: str = "model", revision: str = "main", gate: str | None = None
    ) -> None:
        """Serve a directory as one revision of a repository; it is read live, so changed files are a new commit.

        Args:
            kind: model or dataset.
            gate: the token whose owner has accepted the license; every other request for content is refused.
        """
        repository = self.repositories.setdefault((kind, repo_id), Repository())
        repository.revisions[revision] = Path(directory)
        repository.gate = gate

    def fail(self, pattern: str, **fault: Any) -> Fault:
        """Inject a fault into the requests whose path matches the regular expression; see `Fault`."""
        self.faults.append(Fault(pattern, **fault))
        return self.faults[-1]

    def asked(self, pattern: str, method: str = "GET") -> int:
        """How many requests of one method matched."""
        return sum(verb == method and bool(re.search(pattern, path)) for verb, path in self.requests)

    def environment(self, cache: Path, token: str | None = None, offline: bool = False) -> dict[str, str]:
        """Variables that point a subprocess at this hub, with an empty cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": token or "",
            "NO_PROXY": "127.0.0.1",
        }

    def stop(self) -> None:
        """Close the port and every open connection: from here on the hub is down."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Hub

    def setup(self) -> None:
        super().setup()
        self.owner.connections.append(self.connection)

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Tests read `Hub.requests` instead."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.owner.requests.append((self.command, path))
        self.owner.tokens.append(token)
        fault = next((f for f in self.owner.faults if f.applies(self.command, path)), None)
        if fault is not None and fault.status is not None:
            self._error(fault.status, fault.code or "", "injected fault")
        elif found := _RESOLVE.match(_keep_refs(self.path)):
            dataset, repo_id, revision, name = found.groups()
            self._resolve("dataset" if dataset else "model", repo_id, unquote(revision), unquote(name), token, fault)
        elif found := _API.match(_keep_refs(self.path)):
            kind, repo_id, what, revision, below = found.groups()
            self._api(kind[:-1], repo_id, what, unquote(revision or "main"), unquote(below or ""), body)
        else:
            self._error(404, "RepoNotFound", "Repository not found")

    def _find(self, kind: str, repo_id: str, revision: str) -> tuple[Repository, str, Path] | None:
        """The repository and its revision, or None after an error was sent."""
        repository = self.owner.repositories.get((kind, repo_id))
        if repository is None:  # the real hub answers 401 to strangers, so as not to say which private ones exist
            self._error(401, "RepoNotFound", "Repository not found")
            return None
        found = repository.find(revision)
        if found is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return (repository, *found)

    def _resolve(
        self, kind: str, repo_id: str, revision: str, name: str, token: str | None, fault: Fault | None
    ) -> None:
        found = self._find(kind, repo_id, revision)
        if found is None:
            return
        repository, commit, directory = found
        if repository.gate and token != repository.gate:
            status = 403 if token else 401
            message = f"Access to {kind} {repo_id} is restricted. You must have access to it and be authenticated."
            self._error(status, "GatedRepo", message, commit)
        elif not (directory / name).is_file():
            self._error(404, "EntryNotFound", "Entry not found", commit)
        else:
            self._file(directory / name, commit, fault)

    def _file(self, path: Path, commit: str, fault: Fault | None) -> None:
        size = path.stat().st_size
        first, last = 0, size - 1
        asked = re.match(r"bytes=(\d*)-(\d*)$", self.headers.get("Range") or "")
        if asked and asked[1]:
            first, last = int(asked[1]), min(int(asked[2] or last), last)
        elif asked and asked[2]:
            first = max(size - int(asked[2]), 0)
        if asked and first >= size:
            self._error(416, "", "Range not satisfiable")
            return
        headers = {
            "ETag": f'"{etag_of(path)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }  # fmt: skip
        if path.suffix in LARGE:
            headers |= {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{etag_of(path)}"'}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._head(206 if asked else 200, last - first + 1, headers)
        if self.command != "HEAD":
            self._body(path, first, last - first + 1, fault)

    def _body(self, path: Path, first: int, length: int, fault: Fault | None) -> None:
        if fault is not None and fault.body is not None:
            self.wfile.write(fault.body[first : first + length])
            self.close_connection = True
            return
        left = length if fault is None or fault.cut_after is None else min(length, fault.cut_after)
        with path.open("rb") as file:
            file.seek(first)
            while left > 0:
                part = file.read(min(CHUNK, left))
                self.wfile.write(part)
                left -= len(part)
        if fault is not None and fault.cut_after is not None:
            self.close_connection = True

    def _api(self, kind: str, repo_id: str, what: str | None, revision: str, below: str, body: bytes) -> None:
        found = self._find(kind, repo_id, revision)
        if found is None:
            return
        repository, commit, directory = found
        files = sorted(p for p in directory.rglob("*") if p.is_file())
        if what == "tree":
            recursive = "recursive=true" in self.path.lower() or "recursive=1" in self.path
            self._tree(directory, below, files, recursive, commit)
        elif what == "paths-info":
            wanted = json.loads(body)["paths"]
            self._json([_entry(directory, directory / name) for name in wanted if (directory / name).exists()], commit)
        else:
            self._json(_info(kind, repo_id, repository, commit, directory, files), commit)

    def _tree(self, directory: Path, below: str, files: list[Path], recursive: bool, commit: str) -> None:
        root = directory / below
        if not root.is_dir():
            self._error(404, "EntryNotFound", f'"{below}" does not exist', commit)
            return
        shown = files if recursive else sorted(root.iterdir())
        shown = [p for p in shown if p.is_relative_to(root)]
        folders = sorted({p for f in shown for p in f.parents if p.is_relative_to(root) and p != root})
        self._json([_entry(directory, p) for p in [*folders, *shown]], commit)

    def _json(self, value: Any, commit: str) -> None:
        body = json.dumps(value).encode()
        self._head(200, len(body), {"Content-Type": "application/json", "X-Repo-Commit": commit})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str, message: str, commit: str | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        headers = {"Content-Type": "application/json", "X-Error-Code": code, "X-Error-Message": message}
        if commit:
            headers["X-Repo-Commit"] = commit
        self._head(status, len(body), {name: value for name, value in headers.items() if value})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _keep_refs(path: str) -> str:
    """The path of a URL, unquoted except for %2F, which the clients use inside revisions (refs%2Fpr%2F1)."""
    return re.sub(r"%(?!2[fF])([0-9a-fA-F]{2})", lambda m: chr(int(m[1], 16)), urlsplit(path).path)


_ETAGS: dict[tuple[Path, int, int], str] = {}


def etag_of(path: Path) -> str:
    """As on the hub: sha256 of an LFS file, git's blob hash of another."""
    stat = path.stat()
    key = (path, stat.st_size, stat.st_mtime_ns)
    if key not in _ETAGS:
        if path.suffix in LARGE:
            with path.open("rb") as file:
                _ETAGS[key] = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            content = path.read_bytes()
            _ETAGS[key] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return _ETAGS[key]


def commit_of(directory: Path) -> str:
    """A commit hash that changes with any file of the directory."""
    stats = [(str(p.relative_to(directory)), p.stat()) for p in sorted(directory.rglob("*")) if p.is_file()]
    state = [(str(directory), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))]
    return hashlib.sha1(repr(state).encode()).hexdigest()


def _entry(directory: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(directory).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name}
    size, etag = path.stat().st_size, etag_of(path)
    entry: dict[str, Any] = {"type": "file", "oid": etag[:40], "size": size, "path": name}
    if path.suffix in LARGE:
        entry["lfs"] = {"oid": etag, "size": size, "pointerSize": 134}
    return entry


def _info(
    kind: str, repo_id: str, repository: Repository, commit: str, directory: Path, files: list[Path]
) -> dict[str, Any]:
    siblings = [
        {"rfilename": p.relative_to(directory).as_posix(), "size": p.stat().st_size, "blobId": etag_of(p)[:40]}
        for p in files
    ]
    return {
        "_id": "0" * 24, "id": repo_id, "sha": commit, "private": repository.private,
        "gated": "manual" if repository.gate else False, "disabled": False, "tags": [], "downloads": 0, "likes": 0,
        "lastModified": "2025-01-01T00:00:00.000Z", "createdAt": "2025-01-01T00:00:00.000Z", "siblings": siblings,
        **({"modelId": repo_id} if kind == "model" else {}),
        **({"cardData": metadata_load(directory / "README.md")} if (directory / "README.md").is_file() else {}),
    }  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that the libraries in this process talk to, online, without a token and with an empty cache."""
    server = Hub()
    point_libraries_at(server.url, tmp_path / "hub_cache", monkeypatch)
    yield server
    server.stop()


def point_libraries_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what the libraries read from the environment when they were imported; retries do not wait."""
    import datasets.config
    from huggingface_hub import constants, file_download, hf_api, hf_file_system
    from huggingface_hub.utils import _http, close_session

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    for name, value in {
        "ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache / "hub"), "HF_TOKEN_PATH": str(cache / "token"), "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_TELEMETRY": True,
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    for name, value in {
        "HF_ENDPOINT": url, "HUB_DATASETS_URL": url + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_HUB_OFFLINE": False, "HF_DATASETS_CACHE": cache / "datasets",
        "HF_UPDATE_DOWNLOAD_COUNTS": False, "STREAMING_READ_MAX_RETRIES": 2, "STREAMING_READ_RETRY_INTERVAL": 0,
        "STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL": 0, "STREAMING_OPEN_RETRY_INTERVAL": 0,
    }.items():  # fmt: skip
        monkeypatch.setattr(datasets.config, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    hf_file_system.HfFileSystem.clear_instance_cache()
    patient = SimpleNamespace(**{name: getattr(time, name) for name in dir(time) if not name.startswith("_")})
    patient.sleep = lambda _seconds: None
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", patient)


def set_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_HUB_OFFLINE=1 would have set at import."""
    import datasets.config
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
