"""A W&B server on loopback: the few GraphQL calls, the file stream and the uploads that wandb-core makes, recorded.

What it knows of W&B's own server is from the client's sources and from what W&B documents and users report, one thing
above all: a run that is started again under its id, without `resume`, replaces what was there.

It answers as the public client's own GraphQL documents ask, and refuses (HTTP 500, noted in `unknown`) whatever it does
not know: a test can so assert that nothing was asked that got no true answer.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ENTITY = "tester"
API_KEY = "0123456789abcdef" * 2 + "01234567"


@dataclass
class Run:
    """A run as the server knows it."""

    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, dict[int, str]] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows of the history, in order of their line."""
        return self._lines("wandb-history.jsonl")

    @property
    def summary(self) -> dict[str, Any]:
        """The summary: the last line counts."""
        lines = self._lines("wandb-summary.json")
        return lines[-1] if lines else {}

    def _lines(self, name: str) -> list[dict[str, Any]]:
        lines = self.streams.get(name, {})
        return [json.loads(lines[number]) for number in sorted(lines)]


@dataclass
class WandbServer:
    """What was uploaded.

    Attributes:
        runs: by id.
        artifacts: by artifact id; those of one name and digest are one.
        files: uploaded bodies by path.
        calls: GraphQL operations, in order.
        unknown: requests without an answer.
        views: saved views of projects, as sent.
    """

    url: str = ""
    runs: dict[str, Run] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a GraphQL request, or None where it is not known."""
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        name = found.group(1) if found else "anonymous"
        with self.lock:
            self.calls.append(name)
            answer = _ANSWERS.get(name)
            try:
                return None if answer is None else answer(self, variables)
            except KeyError as error:
                self.unknown.append(f"{name}: no variable {error} in {sorted(variables)}")
                return None

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        """A post to the file stream: lines by file and offset, and the end of the run."""
        with self.lock:
            run = self.runs[run_id]
            for name, chunk in body.get("files", {}).items():
                lines = run.streams.setdefault(name, {})
                lines.update({chunk["offset"] + i: line for i, line in enumerate(chunk["content"])})
            if body.get("complete"):
                run.exit_code = body["exitcode"]


def _upsert(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:
    inserted = v["name"] not in server.runs
    run = server.runs.setdefault(v["name"], Run())
    if run.exit_code is not None:  # it had ended: this is a new start under its id
        run.streams.clear()
        run.exit_code = None
    run.fields |= {key: value for key, value in v.items() if value is not None and key != "config"}
    if v.get("config"):
        run.config = json.loads(v["config"])
    project = {"id": "project", "name": v["project"], "entity": {"id": "entity", "name": ENTITY}}
    bucket = {"id": f"bucket-{v['name']}", "name": v["name"], "displayName": v.get("displayName"), "description": None,
              "config": json.dumps(run.config), "sweepName": None, "project": project,
              "historyLineCount": len(run.history)}  # fmt: skip
    return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}


def _resume_status(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:
    run = server.runs.get(v["name"])
    bucket = None
    if run is not None:
        history = run.history
        bucket = {"id": f"bucket-{v['name']}", "name": v["name"], "summaryMetrics": json.dumps(run.summary),
                  "displayName": run.fields.get("displayName"), "logLineCount": 0, "historyLineCount": len(history),
                  "eventsLineCount": 0, "historyTail": json.dumps([json.dumps(row) for row in history[-1:]]),
                  "eventsTail": "[]", "config": json.dumps(run.config), "tags": run.fields.get("tags") or [],
                  "notes": None, "wandbConfig": json.dumps({"t": 1})}  # fmt: skip
    return {"model": {"id": "project", "name": v["project"], "entity": {"id": "entity", "name": ENTITY},
                      "bucket": bucket}}  # fmt: skip


def _create_artifact(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:
    given = v["input"]
    name, digest = given["artifactCollectionName"], given["digest"]
    known = [a for a in server.artifacts.values() if (a["name"], a["digest"]) == (name, digest)]
    if known:
        state = known[0]["state"]
        artifact_id = known[0]["id"]
    else:
        artifact_id, state = f"artifact-{len(server.artifacts)}", "PENDING"
        server.artifacts[artifact_id] = {
            "id": artifact_id, "name": name, "digest": digest, "state": state, "type": given["artifactTypeName"],
            "made_by": given.get("runName"), "metadata": json.loads(given.get("metadata") or "{}"), "files": {},
        }  # fmt: skip
    return {"createArtifact": {"artifact": {"id": artifact_id, "state": state,
                                            "artifactSequence": {"latestArtifact": None}}}}  # fmt: skip


def _artifact_files(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:
    edges = []
    for given in v["input"]["artifactFiles"]:
        path = f"/storage/{given['artifactID']}/{given['name']}"
        server.artifacts[given["artifactID"]]["files"][given["name"]] = path
        edges.append({"node": {"storagePath": path, "uploadUrl": server.url + path, "uploadHeaders": [],
                               "uploadMultipartUrls": None, "artifact": {"id": given["artifactID"]}}})  # fmt: skip
    return {"createArtifactFiles": {"files": {"edges": edges}}}


def _manifest(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:
    path = f"/storage/{v['artifactID']}/{v['name']}"
    file = {"id": "file", "uploadUrl": server.url + path, "uploadHeaders": []}
    return {"createArtifactManifest": {"artifactManifest": {"id": f"manifest-{v['artifactID']}", "file": file}}}


def _commit(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:
    artifact = server.artifacts[v["artifactID"]]
    artifact["state"] = "COMMITTED"
    return {"commitArtifact": {"artifact": {"id": artifact["id"], "digest": artifact["digest"]}}}


def _run_files(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:
    files = [{"name": name, "uploadUrl": f"{server.url}/storage/{v['run']}/{name}"} for name in v["files"]]
    return {"createRunFiles": {"runID": f"bucket-{v['run']}", "uploadHeaders": [], "files": files}}


def _view(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:
    server.views.append(v)
    return {"upsertView": {"view": {"id": f"view-{len(server.views)}", "name": v["name"]}, "inserted": True}}


_USER = {"id": "user", "entity": ENTITY, "username": ENTITY, "email": None, "flags": "{}", "teams": {"edges": []}}
_ANSWERS: dict[str, Callable[[WandbServer, dict[str, Any]], dict[str, Any]]] = {
    "ServerFeaturesQuery": lambda server, v: {"serverInfo": {"features": []}},
    "ServerInfo": lambda server, v: {"serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None}},
    "Viewer": lambda server, v: {"viewer": _USER},
    "UpsertBucket": _upsert,
    "RunResumeStatus": _resume_status,
    "RunStoppedStatus": lambda server, v: {"project": {"run": {"stopped": False}}},
    "CreateRunFiles": _run_files,
    "MarkRunFilesUploaded": lambda server, v: {"markRunFilesUploaded": {"success": True}},
    "CreateArtifact": _create_artifact,
    "CreateArtifactFiles": _artifact_files,
    "CreateArtifactManifest": _manifest,
    "CommitArtifact": _commit,
    "UpsertView2": _view,
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def state(self) -> WandbServer:
        return self.server.state  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        raw = self._body()
        if self.path.startswith("/sdk/otel/"):  # the client's own usage statistics: not a part of the run
            self._answer({})
            return
        try:
            body = json.loads(raw)
        except ValueError:
            self._unknown("")
            return
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        if stream:
            self.state.stream(stream.group(1), body)
            self._answer({"exitcode": None, "limits": {}})
        elif self.path.rstrip("/").endswith("/graphql"):
            data = self.state.graphql(body.get("query", ""), body.get("variables") or {})
            if data is None:
                self._unknown(body.get("query", "")[:2000])
            else:
                self._answer({"data": data})
        else:
            self._unknown("")

    def do_PUT(self) -> None:
        with self.state.lock:
            self.state.files[self.path] = self._body()
        self._answer({})

    def do_GET(self) -> None:
        self._unknown("")

    def _unknown(self, detail: str) -> None:
        self.state.unknown.append(f"{self.command} {self.path} {detail}")
        self._answer({"errors": [{"message": "not known to this server"}]}, status=400)

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, value: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server on a free loopback port, for the duration of the block."""
    http = _Server(("127.0.0.1", 0), _Handler)
    state = WandbServer(url=f"http://127.0.0.1:{http.server_address[1]}")
    http.state = state  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        thread.join(timeout=10)


def run_python(server: WandbServer, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python that knows this server only, with a home of its own."""
    folders = {name: str(home / "wandb_home") for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "HOME")}
    variables = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": API_KEY, "WANDB_MODE": "online", **folders}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **variables},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
