"""A judge that asks a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from sae_match.config.judging_schema import OrderMode
from sae_match.judging.client import ChatClient, Reply, RequestFailedError
from sae_match.judging.judge import Question
from sae_match.judging.levels import Answer, Judgement, Outcome, combine
from sae_match.judging.prompt import Message, messages, read_answer

logger = logging.getLogger(__name__)

Chat = list[Message]


class AnswerCache(Protocol):
    """Where answers are kept by content key (`store.ResultCache` is one)."""

    def get(self, key: str) -> Mapping[str, Any] | None:
        """What was stored, or None."""

    def put(self, key: str, payload: Mapping[str, object]) -> None:
        """Store scalars by name."""


class EndpointJudge:
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
        order: OrderMode = OrderMode.both,
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
        if self.order is OrderMode.both:
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
            # An interrupted job must neither send what is still in the queue nor sit through pauses.
            self._stopped = "interrupted"
            self.client.cancelled.set()
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
