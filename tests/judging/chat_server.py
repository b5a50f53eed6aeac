"""A chat-completions server on loopback whose answers a test decides; every request is recorded."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Response:
    """What the server sends; `drop` closes the connection instead."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False


def completion(content: str | None, finish_reason: str = "stop", refusal: str | None = None) -> Response:
    """A chat completion as OpenAI's API returns it."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return Response(
        body={
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
            "usage": {"prompt_tokens": 50, "completion_tokens": 2, "total_tokens": 52},
        }
    )


@dataclass
class ChatServer:
    """A running server: `url` is its base_url; `requests` the decoded bodies, `headers` and `paths` beside them.

    `busiest` is the largest number of requests that `respond` was working on at once.
    """

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    busiest: int = 0


@contextmanager
def chat_server(respond: Callable[[int, dict[str, Any]], Response]) -> Iterator[ChatServer]:
    """Serve until the block ends; `respond` gets the number of the request (from 0) and its body ({} for GET)."""
    lock = threading.Lock()
    busy = 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def do_GET(self) -> None:
            self.answer({})

        def answer(self, body: dict[str, Any]) -> None:
            nonlocal busy
            with lock:
                number = len(state.requests)
                state.requests.append(body)
                state.headers.append(dict(self.headers))
                state.paths.append(self.path)
                busy += 1
                state.busiest = max(state.busiest, busy)
            try:
                response = respond(number, body)
            finally:
                # Before the answer is sent: who has read it may ask again before this thread runs on.
                with lock:
                    busy -= 1
            self.send(response)

        def send(self, response: Response) -> None:
            if response.drop:
                self.close_connection = True
                return
            content = response.body if isinstance(response.body, bytes) else json.dumps(response.body).encode()
            self.send_response(response.status)
            for name, value in {"Content-Length": str(len(content)), **response.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that has gone away is part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    state = ChatServer(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
