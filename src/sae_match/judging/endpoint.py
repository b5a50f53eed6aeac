"""A judge that asks a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from sae_match.errors import UserError
from sae_match.judging.client import ChatClient, Reply, RequestFailedError
from sae_match.judging.judge import Answer, AnswerCache, Judge, Judgement, Judging, Outcome, Question, combine
from sae_match.judging.prompt import Message, cost_bound, estimated_cost, messages, read_answer
from sae_match.options import option

logger = logging.getLogger(__name__)

Chat = list[Message]
Order = Literal["both", "random"]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@option
class EndpointJudge(Judging):
    """A language model behind an OpenAI-compatible server; its key comes from the environment."""

    model: Annotated[str, Field(min_length=1)]
    """The model's name at the server."""
    base_url: str
    """Address up to and including the version, such as https://api.openai.com/v1."""
    api_key_variable: str | None = None
    """Name of the environment variable that holds the key; null = the server needs none."""
    order: Order = "both"
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
        _check_address(self.base_url)
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
        """Refuse a job whose cost may be above `max_cost`.

        Raises:
            UserError: it may.
        """
        requests = pairs * (2 if self.order == "both" else 1)
        bound = cost_bound(requests, self.description_chars, self.max_tokens, self.price_input, self.price_output)
        if self.max_cost is not None and bound.dollars is not None and bound.dollars > self.max_cost:
            raise UserError(
                f"judging.max_cost={self.max_cost}: the judge may need {bound} at most. Raise it, or lower "
                "judging.pairs, judging.description_chars or the layer span."
            )

    def client(self) -> ChatClient:
        """The client of the server.

        Raises:
            UserError: the key's variable is not set or cannot be sent, or the openai package is not installed.
        """
        sampling = {} if self.temperature is None else {"temperature": self.temperature}
        return ChatClient(
            self.base_url,
            self.model,
            _key(self.api_key_variable),
            retries=self.retries,
            timeout_s=self.timeout_s,
            body={self.max_tokens_key: self.max_tokens, **sampling},
        )

    def start(self, questions: Sequence[Question], answers: AnswerCache) -> Judge:
        """The judge; the estimated cost of what earlier runs have not answered is logged."""
        judge = EndpointSession(
            self.client(),
            answers,
            order=self.order,
            seed=self.seed,
            concurrency=self.concurrency,
            max_failures=self.max_failures,
        )
        cost = estimated_cost(judge.missing(questions), self.max_tokens, self.price_input, self.price_output)
        logger.info("judge %s at %s: estimated %s; answers of earlier runs are reused", self.model, self.base_url, cost)
        return judge


def _check_address(base_url: str) -> None:
    try:
        address = urlsplit(base_url)
        address.port  # noqa: B018 - raises on a port that is no number
    except ValueError:
        raise ValueError("judging.base_url: not a valid address") from None
    if address.username is not None or address.password is not None or address.query:
        raise ValueError(
            "judging.base_url: must not carry a password or a query; name the key's variable in api_key_variable"
        )
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(
            f"judging.base_url={base_url}: must be an http or https address such as https://api.openai.com/v1"
        )


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"the environment variable {variable} is not set, and judging.api_key_variable names it for the endpoint's "
            "key. Export it, or use judging.api_key_variable=null for a server that needs none."
        )
    if not key.isascii() or not key.isprintable():
        raise UserError(f"the environment variable {variable} does not hold a key that can be sent")
    return key


class EndpointSession:
    """Asks about each pair in both orders, or in one that a hash of the pair draws.

    Answers are stored as they come, under a key of everything that could change them (address, model, options,
    messages). A second run asks only what is not there yet. Failures are not stored. After `max_failures` failed
    requests in a row, or one that shows that all others would fail too, nothing more is sent, and the rest counts as
    errors: the numbers computed so far must not be lost to a server.

    Args:
        client: the endpoint.
        cache: where answers are kept.
        seed: of the hash for order=random.
        tick: called once per finished request.
    """

    def __init__(
        self,
        client: ChatClient,
        cache: AnswerCache,
        *,
        order: Order = "both",
        seed: int = 0,
        concurrency: int = 8,
        max_failures: int = 20,
        tick: Callable[[], object] = lambda: None,
    ) -> None:
        self.client, self.cache, self.order, self.seed = client, cache, order, seed
        self._concurrency, self._max_failures, self._tick = concurrency, max_failures, tick
        self._lock = threading.Lock()
        self._failures_in_a_row = 0
        self._stopped: str | None = None

    def orders(self, question: Question) -> tuple[str, ...]:
        """Orders in which a pair is asked: `ab`, `ba`."""
        if self.order == "both":
            return "ab", "ba"
        content = json.dumps([self.seed, question.a.text, question.b.text])
        return ("ab",) if hashlib.sha256(content.encode()).digest()[0] % 2 else ("ba",)

    def key(self, chat: Chat) -> str:
        """Content key of one chat's answer."""
        content = {"base_url": self.client.base_url, "messages": chat, **self.client.body}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def missing(self, questions: Sequence[Question]) -> list[Chat]:
        """The chats that these questions need and that the cache cannot answer, each once."""
        chats = self._chats(questions)
        return [chat for key, chat in chats.items() if self.cache.get(key) is None]

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """One verdict per question; requests run `concurrency` at a time."""
        answers = self._ask(self._chats(questions))
        verdicts = []
        for question in questions:
            keys = {order: self.key(messages(question, order)) for order in self.orders(question)}
            verdicts.append(combine([_answer(order, answers[key]) for order, key in keys.items()]))
        return verdicts

    def _chats(self, questions: Sequence[Question]) -> dict[str, Chat]:
        chats = [messages(question, order) for question in questions for order in self.orders(question)]
        return {self.key(chat): chat for chat in chats}

    def _ask(self, chats: Mapping[str, Chat]) -> dict[str, Reply | str]:
        """A reply per key, or what went wrong."""
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="judge")
        try:
            futures = {key: pool.submit(self._one, key, chat) for key, chat in chats.items()}
            return {key: future.result() for key, future in futures.items()}
        except BaseException:
            # An interrupted job must not send what is still in the queue.
            self._stopped = "interrupted"
            self.client.close()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _one(self, key: str, chat: Chat) -> Reply | str:
        stored = self.cache.get(key)
        if stored is not None:
            self._tick()
            return Reply(**stored)
        if self._stopped is not None:
            return f"not asked: {self._stopped}"
        try:
            reply = self.client.complete(chat)
        except RequestFailedError as error:
            self._failed(error)
            return str(error)
        finally:
            self._tick()
        with self._lock:
            self._failures_in_a_row = 0
        self.cache.put(key, vars(reply))
        return reply

    def _failed(self, error: RequestFailedError) -> None:
        with self._lock:
            self._failures_in_a_row += 1
            if self._stopped is None and (error.final or self._failures_in_a_row >= self._max_failures):
                self._stopped = f"the endpoint fails ({error})"
                logger.error(
                    "judge: %s; nothing more is asked. Answers so far are kept: the same command asks the rest",
                    self._stopped,
                )


def _answer(order: str, reply: Reply | str) -> Answer:
    if isinstance(reply, str):
        return Answer(order, Outcome.error, error=reply)
    outcome, level = read_answer(reply.text, refused=reply.refused)
    return Answer(order, outcome, level, reply.text, None, reply.prompt_tokens, reply.completion_tokens)
