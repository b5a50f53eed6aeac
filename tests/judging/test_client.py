"""The HTTP client against a server on loopback: retries, every kind of failure, the key."""

from __future__ import annotations

import logging
import socket
import sys
import time
from typing import Any

import pytest

from sae_match import UserError
from sae_match.judging.chat import ChatClient, Reply, RequestFailedError
from tests.judging.chat_server import Response, chat_server, completion

CHAT = [{"role": "user", "content": "SAME?"}]


def client(url: str, key: str | None = None, retries: int = 1, timeout_s: float = 60.0, **body: Any) -> ChatClient:
    return ChatClient(url, "tiny", key, retries, timeout_s, body)


def test_a_request_is_what_the_protocol_says() -> None:
    with chat_server(lambda *_: completion("SAME")) as server:
        asked = client(server.url + "/", "sk-123", max_tokens=16, temperature=0.0)
        assert asked.complete(CHAT) == Reply("SAME", False, 50, 2)
    assert server.paths == ["/v1/chat/completions"]
    expected = {"model": "tiny", "messages": CHAT, "stream": False, "max_tokens": 16, "temperature": 0.0}
    assert server.requests == [expected]
    assert server.headers[0]["authorization"] == "Bearer sk-123"


def test_no_key_no_authorization(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is meant for another server stays where it is."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin")
    with chat_server(lambda *_: completion("SAME")) as server:
        client(server.url).complete(CHAT)
    assert "sk-" not in str(server.headers[0]) and "authorization" not in {name.lower() for name in server.headers[0]}


@pytest.mark.parametrize(
    "failure",
    [
        Response(429, {"error": "slow down"}), Response(500, {}), Response(503, b"<html>"), Response(408, {}),
        Response(drop=True),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again(failure: Response) -> None:
    with chat_server(lambda number, _: failure if number < 1 else completion("MAYBE")) as server:
        asked = client(server.url)
        assert asked.complete(CHAT).text == "MAYBE"
    assert len(server.requests) == 2


@pytest.mark.parametrize("body", [b"no json", {"choices": []}, [1], {"choices": [{"message": None}]}])
def test_an_answer_that_is_no_chat_completion(body: Any) -> None:
    with (
        chat_server(lambda *_: Response(200, body)) as server,
        pytest.raises(RequestFailedError, match="no chat completion") as error,
    ):
        client(server.url).complete(CHAT)
    assert not error.value.final


def test_retries_end() -> None:
    with chat_server(lambda *_: Response(500, {"error": "boiler"})) as server:
        asked = client(server.url)
        with pytest.raises(RequestFailedError, match=r"HTTP 500 .*boiler") as error:
            asked.complete(CHAT)
    assert len(server.requests) == 2
    assert not error.value.final


@pytest.mark.parametrize(("status", "final"), [(400, False), (422, False), (401, True), (403, True), (404, True)])
def test_what_will_not_pass_is_asked_once(status: int, final: bool) -> None:
    with chat_server(lambda *_: Response(status, {"error": "no"})) as server:
        asked = client(server.url)
        with pytest.raises(RequestFailedError, match=f"HTTP {status}") as error:
            asked.complete(CHAT)
    assert (len(server.requests), error.value.final) == (1, final)


def test_an_empty_account_ends_all_requests() -> None:
    poor = Response(429, {"error": {"code": "insufficient_quota"}})
    with chat_server(lambda *_: poor) as server, pytest.raises(RequestFailedError) as error:
        client(server.url, retries=0).complete(CHAT)
    assert error.value.final


def test_a_redirect_never_gets_the_key() -> None:
    with chat_server(lambda *_: completion("SAME")) as thief:
        moved = Response(302, b"", {"Location": thief.url + "/chat/completions"})
        with chat_server(lambda *_: moved) as server, pytest.raises(RequestFailedError, match="HTTP 302"):
            client(server.url, "sk-123").complete(CHAT)
    assert thief.requests == []


def test_a_silent_server_times_out() -> None:
    def slowly(*_: object) -> Response:
        time.sleep(0.5)
        return completion("SAME")

    with chat_server(slowly) as server, pytest.raises(RequestFailedError, match=r"(?i)timed? ?out"):
        client(server.url, retries=0, timeout_s=0.05).complete(CHAT)


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'sae-match\[judge\]'"):
        client("http://127.0.0.1:1/v1")


def test_refusals_and_filters_are_marked() -> None:
    responses = [completion(None, refusal="I can't."), completion(None, "content_filter"), completion(None)]
    with chat_server(lambda number, _: responses[number]) as server:
        asked = client(server.url)
        replies = [asked.complete(CHAT) for _ in responses]
    assert [(reply.text, reply.refused) for reply in replies] == [("I can't.", True), ("", True), ("", False)]


def test_the_key_appears_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with chat_server(lambda *_: Response(401, {"error": "wrong key sk-secret"})) as server:
        asked = client(server.url, "sk-secret")
        with pytest.raises(RequestFailedError) as error:
            asked.complete(CHAT)
        with pytest.raises(UserError, match="api_key_variable") as checked:
            asked.check()
    with chat_server(lambda *_: completion("your key is sk-secret")) as server:
        reply = client(server.url, "sk-secret").complete(CHAT)
    said = f"{error.value} {checked.value} {reply} {caplog.text}"
    assert "sk-secret" not in said
    assert "***" in str(error.value) and "***" in reply.text


def test_check_finds_an_absent_server_and_passes_one_without_a_list() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="Is the server running"):
        client(f"http://127.0.0.1:{port}/v1").check()
    with chat_server(lambda *_: Response(404, {})) as server:
        client(server.url).check()
    with chat_server(lambda *_: Response(200, {"data": []})) as server:
        client(server.url).check()
    assert server.paths == ["/v1/models"]
