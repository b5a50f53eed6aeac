"""A small client of OpenAI-compatible chat completions, on the standard library's urllib."""

from __future__ import annotations

import http.client
import json
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import Message as Headers
from typing import IO, Any

from sae_match.errors import UserError
from sae_match.judging.prompt import Message

RETRIED = (408, 409, 429)
"""Retried beside every 5xx."""
NOT_FOR_US = (401, 403, 404, 405)
"""Will be answered the same way next time: wrong key, model or address."""
LONGEST_PAUSE_S = 60.0
HIDDEN = "***"


@dataclass(frozen=True)
class Reply:
    """What a server answered; token counts as it reports them."""

    text: str
    refused: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class RequestFailedError(Exception):
    """A request that brought no answer after all its attempts.

    Attributes:
        final: every other request would fail the same way.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class _Attempt(Exception):  # noqa: N818 - never leaves this file
    """One attempt failed; `status` is HTTP's (None = no answer at all), `pause` what the server asks us to wait."""

    def __init__(
        self,
        message: str,
        *,
        retry: bool,
        final: bool = False,
        status: int | None = None,
        pause: float | None = None,
    ) -> None:
        super().__init__(message)
        self.retry, self.final, self.status, self.pause = retry, final, status, pause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another address."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Headers, newurl: str
    ) -> None:
        return None


class ChatClient:
    """Sends chats to `base_url`/chat/completions; safe to use from several threads.

    Args:
        base_url: address up to and including the version.
        api_key: sent as a bearer token; never logged, and blotted out of every text that comes back.
        retries: further attempts after a failure that may pass.
        timeout_s: longest wait for the server at each step of an attempt.
        body: further fields of every request, such as the token limit and temperature.
        sleep: waits between attempts; by default until `cancelled` is set, at the longest.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        retries: int = 5,
        timeout_s: float = 60.0,
        body: dict[str, Any] | None = None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.base_url, self.model = base_url.rstrip("/"), model
        self.body: dict[str, Any] = {"model": model, "stream": False, **(body or {})}
        self._key, self._retries, self._timeout = api_key, retries, timeout_s
        self.cancelled = threading.Event()
        self._sleep = self.cancelled.wait if sleep is None else sleep
        self._opener = urllib.request.build_opener(_NoRedirect)

    def complete(self, messages: Sequence[Message]) -> Reply:
        """The server's answer to one chat.

        Raises:
            RequestFailedError: no answer after all attempts.
        """
        for attempt in range(self._retries + 1):
            try:
                return _reply(self._send("chat/completions", {**self.body, "messages": list(messages)}), self.blotted)
            except _Attempt as error:
                if not error.retry or attempt == self._retries or self.cancelled.is_set():
                    raise RequestFailedError(str(error), final=error.final) from None
                pause = min(LONGEST_PAUSE_S, 2.0**attempt * random.uniform(0.5, 1.0))
                self._sleep(pause if error.pause is None else min(LONGEST_PAUSE_S, max(0.0, error.pause)))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def check(self) -> None:
        """Ask for the list of models, so that a wrong address or key is found before long work.

        Raises:
            UserError: the server cannot be reached or refuses the key. A server that keeps no such list passes.
        """
        try:
            self._send("models", None)
        except _Attempt as error:
            if error.status in (401, 403):
                raise UserError(
                    f"judging.base_url={self.base_url}: {error}. Check the key in the variable that "
                    "judging.api_key_variable names."
                ) from None
            if error.status is None:
                raise UserError(f"judging.base_url={self.base_url}: {error}. Is the server running?") from None

    def blotted(self, text: str) -> str:
        """The text without the key, should a server send it back."""
        return text.replace(self._key, HIDDEN) if self._key else text

    def _send(self, path: str, body: dict[str, Any] | None) -> Any:
        """The decoded JSON of one attempt."""
        headers = {"Content-Type": "application/json", "User-Agent": "sae-match"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.base_url}/{path}", data=data, headers=headers)
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise _Attempt(self.blotted(f"no answer ({type(error).__name__}: {reason})"), retry=True) from None
        try:
            return json.loads(content)
        except ValueError:
            raise _Attempt("the answer is not JSON", retry=True, status=200) from None

    def _refused(self, error: urllib.error.HTTPError) -> _Attempt:
        """What an HTTP error means; its body is closed."""
        with error:
            try:
                detail = " ".join(error.read(2000).decode(errors="replace").split())[:300]
            except (OSError, http.client.HTTPException):
                detail = ""
        retry = error.code in RETRIED or error.code >= 500
        # An account without funds answers 429 as well, and waiting does not help it.
        final = error.code in NOT_FOR_US or "insufficient_quota" in detail or 300 <= error.code < 400
        message = self.blotted(f"HTTP {error.code} {error.reason}: {detail}")
        return _Attempt(
            message, retry=retry and not final, final=final, status=error.code, pause=_seconds(error.headers)
        )


def _seconds(headers: Headers) -> float | None:
    """The Retry-After header where it is a number of seconds (it may be a date)."""
    value = headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() else None


def _reply(data: Any, blotted: Callable[[str], str]) -> Reply:
    try:
        choice = data["choices"][0]
        message, usage = choice["message"], data.get("usage") or {}
        text, refusal = message.get("content") or "", message.get("refusal")
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _Attempt("the JSON is no chat completion", retry=True) from None
    if not isinstance(text, str):
        raise _Attempt("the chat completion's content is no text", retry=False)
    refused = bool(refusal) or choice.get("finish_reason") == "content_filter"
    tokens = [count if isinstance(count, int) else None for count in counts]
    return Reply(blotted(text or (refusal if isinstance(refusal, str) else "")), refused, tokens[0], tokens[1])
