"""A judge that asks a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from sae_match.errors import UserError
from sae_match.judging.chat import ChatClient, Message, Reply, RequestFailedError, messages, read_answer
from sae_match.judging.descriptions import Description
from sae_match.judging.judge import Answer, Judgement, Judging, Outcome, Question, combine
from sae_match.options import option
from sae_match.store import Store

logger = logging.getLogger(__name__)

KIND = "judge_answers"
BYTES_PER_TOKEN = 4
"""English text in the vocabularies of today's models; an estimate, since the endpoint's tokenizer is not known."""
TOKENS_PER_MESSAGE = 8
"""Chat markup around each message."""

Chat = list[Message]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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


@option
class EndpointJudge(Judging):
    """A language model behind an OpenAI-compatible server; its key comes from the environment."""

    model: Annotated[str, Field(min_length=1)]
    """The model's name at the server."""
    base_url: str
    """Address up to and including the version, such as https://api.openai.com/v1."""
    api_key_variable: str | None = None
    """Name of the environment variable that holds the key; null = the server needs none."""
    order: Literal["both", "random"] = "both"
    """both = each pair is asked in both orders; random = in one, drawn by a hash of the pair and recorded."""
    concurrency: Annotated[int, Field(ge=1)] = 8
    """Requests under way at a time."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Further attempts after 408, 409, 429, 5xx, timeouts and broken connections, with growing pauses."""
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    """Longest wait for one answer."""
    max_failures: Annotated[int, Field(ge=1)] = 20
    """After so many failed requests in a row (each after its retries) no more are sent."""
    max_tokens: Annotated[int, Field(ge=1)] = 16
    """Longest answer. Models that reason first need more."""
    max_tokens_key: str = "max_tokens"
    """What the server calls that limit; newer OpenAI models say max_completion_tokens."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 0.0
    """Sampling temperature; null = leave it to the server."""
    price_input: Price | None = None
    """US dollars per million prompt tokens, for the cost estimate."""
    price_output: Price | None = None
    """US dollars per million answer tokens."""
    max_cost: Price | None = None
    """Refuse to start where the upper bound of the cost is above this, in US dollars."""

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        # Checked here and not field by field: messages about a field repeat its value, which may be a secret.
        try:
            address = urlsplit(self.base_url)
            address.port  # noqa: B018 - raises on a port that is no number
        except ValueError:
            raise ValueError("judging.base_url: not a valid address") from None
        if address.username is not None or address.password is not None or address.query:
            raise ValueError(
                "judging.base_url: must not carry a password or a query; name the key's variable in api_key_variable"
            )
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(
                f"judging.base_url={self.base_url}: must be an http or https address such as https://api.openai.com/v1"
            )
        variable = self.api_key_variable
        if variable is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
            raise ValueError(
                "judging.api_key_variable: must be the name of an environment variable (letters, digits, _), not a key"
            )
        if self.max_cost is not None and None in (self.price_input, self.price_output):
            raise ValueError("judging.max_cost is set, but not both judging.price_input and judging.price_output")
        return self

    def check(self, pairs: int) -> None:
        """Check the cost, and ask the server for its models.

        Raises:
            UserError: the key is not set or refused, the server cannot be reached, or the cost may be above `max_cost`.
        """
        self.check_cost(pairs)
        self.client().check()

    def check_cost(self, pairs: int) -> None:
        """Refuse a job whose cost may be above `max_cost`: that of descriptions of the greatest length.

        Raises:
            UserError: it may.
        """
        longest = Description("\U0010ffff" * self.description_chars, {})  # 4 bytes each in UTF-8, which is the most
        bound = self.cost([messages(Question(longest, longest), "ab")], pairs * (2 if self.order == "both" else 1))
        if self.max_cost is not None and bound.dollars is not None and bound.dollars > self.max_cost:
            raise UserError(
                f"judging.max_cost={self.max_cost}: the judge may need {bound} at most. Raise it, or lower "
                "judging.pairs, judging.description_chars or the layer span."
            )

    def cost(self, chats: Sequence[Chat], times: int = 1) -> Cost:
        """Estimated cost of these chats, each sent so many times and answered at full length."""
        sizes = [len(message["content"].encode()) for chat in chats for message in chat]
        prompt = times * sum(math.ceil(size / BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE for size in sizes)
        completion, dollars = times * len(chats) * self.max_tokens, None
        if self.price_input is not None and self.price_output is not None:
            dollars = (prompt * self.price_input + completion * self.price_output) / 1e6
        return Cost(times * len(chats), prompt, completion, dollars)

    def client(self) -> ChatClient:
        """The client of the server.

        Raises:
            UserError: the key's variable is not set or cannot be sent, or the openai package is not installed.
        """
        key, variable = None, self.api_key_variable
        if variable is not None:
            key = os.environ.get(variable, "").strip()
            if not key:
                raise UserError(
                    f"the environment variable {variable} is not set, and judging.api_key_variable names it for the "
                    "endpoint's key. Export it, or use judging.api_key_variable=null for a server that needs none."
                )
            if not key.isascii() or not key.isprintable():
                raise UserError(f"the environment variable {variable} does not hold a key that can be sent")
        body = {self.max_tokens_key: self.max_tokens}
        sampling = {} if self.temperature is None else {"temperature": self.temperature}
        return ChatClient(self.base_url, self.model, key, self.retries, self.timeout_s, body | sampling)

    def start(self, questions: Sequence[Question], store: Store) -> EndpointSession:
        """The judge; the estimated cost of what earlier runs have not answered is logged."""
        session = EndpointSession(self, store)
        cost = self.cost(session.missing(questions))
        logger.info("judge %s at %s: estimated %s; answers of earlier runs are reused", self.model, self.base_url, cost)
        return session


class EndpointSession:
    """Asks about each pair in both orders, or in one that a hash of the pair draws.

    Answers are stored as they come, under a key of everything that could change them (address, model, options,
    messages). A second run asks only what is not there yet. Failures are not stored. After `max_failures` failed
    requests in a row, or one that shows that all others would fail too, nothing more is sent, and the rest counts as
    errors: the numbers computed so far must not be lost to a server.
    """

    def __init__(self, options: EndpointJudge, store: Store) -> None:
        self.options, self.store, self.client = options, store, options.client()
        self._lock = threading.Lock()
        self._failures_in_a_row = 0
        self._stopped: str | None = None

    def orders(self, question: Question) -> tuple[str, ...]:
        """Orders in which a pair is asked: `ab`, `ba`."""
        if self.options.order == "both":
            return "ab", "ba"
        content = json.dumps([self.options.seed, question.a.text, question.b.text])
        return ("ab",) if hashlib.sha256(content.encode()).digest()[0] % 2 else ("ba",)

    def missing(self, questions: Sequence[Question]) -> list[Chat]:
        """The chats that these questions need and that the store cannot answer, each once."""
        return [chat for key, chat in self._chats(questions).items() if self.store.get(KIND, {"hash": key}) is None]

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """One verdict per question; requests run `concurrency` at a time."""
        chats = self._chats(questions)
        with ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="judge") as pool:
            try:
                replies = dict(zip(chats, pool.map(self._reply, chats, chats.values()), strict=True))
            except BaseException:
                # An interrupted job must not send what is still in the queue.
                self._stopped = "interrupted"
                self.client.close()
                raise

        def answer(question: Question, order: str) -> Answer:
            reply = replies[self._key(messages(question, order))]
            if isinstance(reply, str):
                return Answer(order, Outcome.error, error=reply)
            outcome, level = read_answer(reply.text, refused=reply.refused)
            return Answer(order, outcome, level, reply.text, None, reply.prompt_tokens, reply.completion_tokens)

        return [combine([answer(question, order) for order in self.orders(question)]) for question in questions]

    def _chats(self, questions: Sequence[Question]) -> dict[str, Chat]:
        chats = [messages(question, order) for question in questions for order in self.orders(question)]
        return {self._key(chat): chat for chat in chats}

    def _key(self, chat: Chat) -> str:
        content = {"base_url": self.client.base_url, "messages": chat, **self.client.body}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _reply(self, key: str, chat: Chat) -> Reply | str:
        """What the store or the server answers, or what went wrong."""
        stored = self.store.get(KIND, {"hash": key})
        if stored is not None:
            return Reply(**stored)
        if self._stopped is not None:
            return f"not asked: {self._stopped}"
        try:
            reply = self.client.complete(chat)
        except RequestFailedError as error:
            with self._lock:
                self._failures_in_a_row += 1
                if self._stopped is None and (error.final or self._failures_in_a_row >= self.options.max_failures):
                    self._stopped = f"the endpoint fails ({error})"
                    logger.error(
                        "judge: %s; nothing more is asked. Answers so far are kept: the same command asks the rest",
                        self._stopped,
                    )
            return str(error)
        with self._lock:
            self._failures_in_a_row = 0
        self.store.put(KIND, {"hash": key}, vars(reply))
        return reply
