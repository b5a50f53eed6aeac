"""Chats with an OpenAI-compatible server, through the `openai` client: retries, timeouts, and a key nobody sees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_match.errors import UserError
from sae_match.judging.prompt import Message

NOT_FOR_US = (401, 403, 404, 405)
"""Will be answered the same way next time: wrong key, model or address."""
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


class ChatClient:
    """Sends chats to `base_url`/chat/completions; safe to use from several threads.

    Args:
        base_url: address up to and including the version.
        api_key: sent as a bearer token; never logged, and removed from every text that comes back. None: none is sent.
        retries: further attempts after 408, 409, 429, 5xx, timeouts and broken connections.
        timeout_s: longest wait for the server at each step of an attempt.
        body: further fields of every request, such as the token limit and temperature.

    Raises:
        UserError: the openai package is not installed.
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
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise UserError("judging=endpoint needs the openai package: `pip install 'sae-match[judge]'`.") from error
        self.base_url, self.model = base_url.rstrip("/"), model
        self.body: dict[str, Any] = {"model": model, "stream": False, **(body or {})}
        self._key = api_key
        self._client = openai.OpenAI(
            base_url=self.base_url,
            # Given even where there is none: else the client would send OPENAI_API_KEY to whatever server this is.
            api_key=api_key or "",
            admin_api_key="",
            max_retries=retries,
            timeout=timeout_s,
            # A redirect would carry the key to another address.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        self._options: Any = {} if api_key else {"headers": {"Authorization": openai.Omit()}}

    def complete(self, messages: Sequence[Message]) -> Reply:
        """The server's answer to one chat.

        Raises:
            RequestFailedError: no answer after all attempts, or one that is no chat completion.
        """
        import openai

        body = {**self.body, "messages": list(messages)}
        try:
            content = self._client.post("/chat/completions", body=body, cast_to=str, options=self._options)
        except openai.APIStatusError as error:
            # An account without funds answers 429 as well, and waiting does not help it.
            final = error.status_code in NOT_FOR_US or "insufficient_quota" in error.response.text
            raise RequestFailedError(self._explain(error), final=final or 300 <= error.status_code < 400) from None
        except openai.OpenAIError as error:
            raise RequestFailedError(self._explain(error)) from None
        return self._reply(content)

    def check(self) -> None:
        """Ask for the list of models, so that a wrong address or key is found before long work.

        Raises:
            UserError: the server cannot be reached or refuses the key. A server that keeps no such list passes.
        """
        import openai

        try:
            self._client.with_options(max_retries=0).get("/models", cast_to=str, options=self._options)
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise UserError(
                    f"judging.base_url={self.base_url}: {self._explain(error)}. Check the key in the variable that "
                    "judging.api_key_variable names."
                ) from None
        except openai.OpenAIError as error:
            raise UserError(
                f"judging.base_url={self.base_url}: {self._explain(error)}. Is the server running?"
            ) from None

    def close(self) -> None:
        """End what is under way; every later request fails."""
        self._client.close()

    def redact(self, text: str) -> str:
        """The text without the key, should a server send it back."""
        return text.replace(self._key, HIDDEN) if self._key else text

    def _explain(self, error: Exception) -> str:
        import openai

        if isinstance(error, openai.APIStatusError):
            detail = " ".join(error.response.text.split())[:300]
            return self.redact(f"HTTP {error.status_code} {error.response.reason_phrase}: {detail}")
        cause = error.__cause__ or error
        return self.redact(f"no answer ({type(cause).__name__}: {cause})")

    def _reply(self, content: str) -> Reply:
        try:
            data = json.loads(content)
            choice = data["choices"][0]
            message, usage = choice["message"], data.get("usage") or {}
            text, refusal = message.get("content") or "", message.get("refusal")
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise RequestFailedError("the answer is no chat completion") from None
        if not isinstance(text, str):
            raise RequestFailedError("the chat completion's content is no text")
        refused = bool(refusal) or choice.get("finish_reason") == "content_filter"
        tokens = [count if isinstance(count, int) else None for count in counts]
        return Reply(self.redact(text or (refusal if isinstance(refusal, str) else "")), refused, tokens[0], tokens[1])
