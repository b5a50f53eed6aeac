"""What asking a language model will cost, before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sae_match.judging.prompt import SYSTEM, Message

BYTES_PER_TOKEN = 4
"""English text in the vocabularies of today's models; an estimate, since the endpoint's tokenizer is not known."""
TOKENS_PER_MESSAGE = 8
"""Chat markup around each message."""
FRAME_BYTES = 200
"""The user message around the two descriptions, generously."""
BYTES_PER_CHARACTER = 4
"""At most, in UTF-8."""


@dataclass(frozen=True)
class Cost:
    """Requests and tokens, and US dollars where prices are known."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None

    def __str__(self) -> str:
        price = "price unknown" if self.dollars is None else f"about ${self.dollars:.2f}"
        return f"{self.requests} requests, {self.prompt_tokens} + {self.completion_tokens} tokens, {price}"


def estimated_cost(
    chats: Iterable[Sequence[Message]], max_tokens: int, price_input: float | None, price_output: float | None
) -> Cost:
    """Cost of these chats, each answered at full length.

    Args:
        max_tokens: longest answer.
        price_input, price_output: US dollars per million tokens; None = not known.
    """
    sizes = [[len(message["content"].encode()) for message in chat] for chat in chats]
    prompt = sum(prompt_tokens(chat) for chat in sizes)
    return priced(len(sizes), prompt, len(sizes) * max_tokens, price_input, price_output)


def cost_bound(
    requests: int, description_chars: int, max_tokens: int, price_input: float | None, price_output: float | None
) -> Cost:
    """The same for descriptions of the greatest length, known before there are any."""
    user = FRAME_BYTES + 2 * description_chars * BYTES_PER_CHARACTER
    prompt = requests * prompt_tokens([len(SYSTEM.encode()), user])
    return priced(requests, prompt, requests * max_tokens, price_input, price_output)


def prompt_tokens(message_bytes: Sequence[int]) -> int:
    """Estimated tokens of a chat with messages of these sizes."""
    return sum(math.ceil(size / BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE for size in message_bytes)


def priced(requests: int, prompt: int, completion: int, price_input: float | None, price_output: float | None) -> Cost:
    """Dollars for so many tokens."""
    dollars = None
    if price_input is not None and price_output is not None:
        dollars = (prompt * price_input + completion * price_output) / 1e6
    return Cost(requests, prompt, completion, dollars)
