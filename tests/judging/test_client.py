"""The HTTP client against a server on loopback: retries, every kind of failure, the key."""

from __future__ import annotations

import logging
import socket
import time
from typing import Any

import pytest

from sae_match import UserError
from sae_match.judging.client import ChatClient, Reply, RequestFailedError
from tests.judging.chat_server import Response, chat_server, completion

CHAT = [{"role": "user", "content": "SAME?"}]


def client(url: str, key: str | None = None, retries: int = 3, **options: Any) -> tuple[ChatClient, list[float]]:
    """A client that notes its pauses and does not make them."""
    pauses: list[float] = []
    return ChatClient(url, "tiny", key, retries=retries, sleep=pauses.append, **options), pauses


def test_a_request_is_what_the_protocol_says() -> None:
    with chat_server(lambda *_: completion("SAME")) as server:
        asked, _ = client(server.url + "/", "sk-123", body={"max_tokens": 16, "temperature": 0.0})
        assert asked.complete(CHAT) == Reply("SAME", False, 50, 2)
    assert server.paths == ["/v1/chat/completions"]
    expected = {"model": "tiny", "messages": CHAT, "stream": False, "max_tokens": 16, "temperature": 0.0}
    assert server.requests == [expected]
    assert server.headers[0]["Authorization"] == "Bearer sk-123"


def test_no_key_no_authorization() -> None:
    with chat_server(lambda *_: completion("SAME")) as server:
        client(server.url)[0].complete(CHAT)
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    "failure",
    [
        Response(429, {"error": "slow down"}), Response(500, {}), Response(503, b"<html>"), Response(408, {}),
        Response(drop=True), Response(200, b"no json"), Response(200, {"choices": []}), Response(200, [1]),
        Response(200, {"choices": [{"message": None}]}),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again(failure: Response) -> None:
    with chat_server(lambda number, _: failure if number < 2 else completion("MAYBE")) as server:
        asked, pauses = client(server.url)
        assert asked.complete(CHAT).text == "MAYBE"
    assert len(server.requests) == 3
    assert 0.5 <= pauses[0] <= 1.0 and 1.0 <= pauses[1] <= 2.0  # growing


def test_retries_end() -> None:
    with chat_server(lambda *_: Response(500, {"error": "boiler"})) as server:
        asked, pauses = client(server.url, retries=2)
        with pytest.raises(RequestFailedError, match=r"HTTP 500 .*boiler") as error:
            asked.complete(CHAT)
    assert len(server.requests) == 3
    assert len(pauses) == 2
    assert not error.value.final


def test_retry_after_is_heeded_within_limits() -> None:
    headers = [{"Retry-After": "7"}, {"Retry-After": "9999"}, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}]
    with chat_server(lambda n, _: Response(429, {}, headers[n]) if n < 3 else completion("SAME")) as server:
        asked, pauses = client(server.url)
        asked.complete(CHAT)
    assert pauses[:2] == [7.0, 60.0]
    assert 2.0 <= pauses[2] <= 4.0


@pytest.mark.parametrize(("status", "final"), [(400, False), (422, False), (401, True), (403, True), (404, True)])
def test_what_will_not_pass_is_asked_once(status: int, final: bool) -> None:
    with chat_server(lambda *_: Response(status, {"error": "no"})) as server:
        asked, pauses = client(server.url)
        with pytest.raises(RequestFailedError, match=f"HTTP {status}") as error:
            asked.complete(CHAT)
    assert (len(server.requests), pauses, error.value.final) == (1, [], final)


def test_an_empty_account_is_not_waited_for() -> None:
    poor = Response(429, {"error": {"code": "insufficient_quota"}})
    with chat_server(lambda *_: poor) as server, pytest.raises(RequestFailedError) as error:
        client(server.url)[0].complete(CHAT)
    assert (len(server.requests), error.value.final) == (1, True)


def test_a_redirect_never_gets_the_key() -> None:
    with chat_server(lambda *_: completion("SAME")) as thief:
        moved = Response(302, b"", {"Location": thief.url + "/chat/completions"})
        with chat_server(lambda *_: moved) as server, pytest.raises(RequestFailedError, match="HTTP 302"):
            client(server.url, "sk-123")[0].complete(CHAT)
    assert thief.requests == []


def test_a_silent_server_times_out() -> None:
    def slowly(*_: object) -> Response:
        time.sleep(0.5)
        return completion("SAME")

    with chat_server(slowly) as server, pytest.raises(RequestFailedError, match=r"(?i)timed? ?out"):
        client(server.url, retries=0, timeout_s=0.05)[0].complete(CHAT)


def test_cancelling_ends_the_retries() -> None:
    with chat_server(lambda *_: Response(500, {})) as server:
        asked = ChatClient(server.url, "tiny", retries=50)
        asked.cancelled.set()
        with pytest.raises(RequestFailedError):
            asked.complete(CHAT)
    assert len(server.requests) == 1


def test_refusals_and_filters_are_marked() -> None:
    responses = [completion(None, refusal="I can't."), completion(None, "content_filter"), completion(None)]
    with chat_server(lambda number, _: responses[number]) as server:
        asked, _ = client(server.url)
        replies = [asked.complete(CHAT) for _ in responses]
    assert [(reply.text, reply.refused) for reply in replies] == [("I can't.", True), ("", True), ("", False)]


def test_the_key_appears_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with chat_server(lambda *_: Response(401, {"error": "wrong key sk-secret"})) as server:
        asked, _ = client(server.url, "sk-secret")
        with pytest.raises(RequestFailedError) as error:
            asked.complete(CHAT)
        with pytest.raises(UserError, match="api_key_variable") as checked:
            asked.check()
    with chat_server(lambda *_: completion("your key is sk-secret")) as server:
        reply = client(server.url, "sk-secret")[0].complete(CHAT)
    said = f"{error.value} {checked.value} {reply} {caplog.text}"
    assert "sk-secret" not in said
    assert "***" in str(error.value) and "***" in reply.text


def test_check_finds_an_absent_server_and_passes_one_without_a_list() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="Is the server running"):
        client(f"http://127.0.0.1:{port}/v1")[0].check()
    with chat_server(lambda *_: Response(404, {})) as server:
        client(server.url)[0].check()
    with chat_server(lambda *_: Response(200, {"data": []})) as server:
        client(server.url)[0].check()
    assert server.paths == ["/v1/models"]
