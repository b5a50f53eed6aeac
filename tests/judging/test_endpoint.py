"""The endpoint judge: both orders, cache, resume, failures counted, cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sae_match import UserError
from sae_match.judging import Level, Outcome, Question, judge_all
from sae_match.judging.chat import messages
from sae_match.judging.descriptions import Description
from sae_match.judging.endpoint import EndpointJudge, EndpointSession
from sae_match.store import Store
from tests.judging.chat_server import Response, chat_server, completion


def described(text: str) -> Description:
    return Description(text, {})


def question(i: int) -> Question:
    return Question(described(f"cats {i}"), described(f"dogs {i}"))


def endpoint(url: str = "http://127.0.0.1:1/v1", **options: Any) -> EndpointJudge:
    return EndpointJudge(**{"name": "endpoint", "model": "tiny", "base_url": url, "retries": 0, **options})


def judge(url: str, cache: Path, **options: Any) -> EndpointSession:
    return EndpointSession(endpoint(url, **options), Store(cache))


def shown_first(body: dict[str, Any]) -> str:
    """`cats` or `dogs`."""
    return str(body["messages"][1]["content"]).split("\n")[1].split()[0]


def test_both_orders_are_asked_and_recorded(tmp_path: Path) -> None:
    with chat_server(lambda *_: completion("SAME")) as server:
        (verdict,) = judge(server.url, tmp_path).judge([question(0)])
    assert sorted(shown_first(body) for body in server.requests) == ["cats", "dogs"]
    assert [answer.order for answer in verdict.answers] == ["ab", "ba"]
    assert (verdict.outcome, verdict.level) == (Outcome.answered, Level.same)
    assert verdict.answers[0].prompt_tokens == 50


@pytest.mark.parametrize(
    ("cats_first", "dogs_first", "level"),
    [("SAME", "DIFFERENT", "maybe"), ("SAME", "MAYBE", "maybe"), ("DIFFERENT", "MAYBE", "different")],
)
def test_orders_that_disagree_give_the_mean_rounded_down(
    tmp_path: Path, cats_first: str, dogs_first: str, level: str
) -> None:
    answers = {"cats": cats_first, "dogs": dogs_first}
    with chat_server(lambda _, body: completion(answers[shown_first(body)])) as server:
        (verdict,) = judge(server.url, tmp_path).judge([question(0)])
    assert verdict.level is Level(level)


def test_the_random_order_is_balanced_recorded_and_repeatable(tmp_path: Path) -> None:
    questions = [question(i) for i in range(400)]
    asked = judge("http://127.0.0.1:1/v1", tmp_path, order="random", seed=3)
    orders = [asked.orders(q) for q in questions]
    counts = Counter(orders)
    assert set(counts) == {("ab",), ("ba",)}
    assert abs(counts["ab",] - 200) < 50  # five standard deviations
    assert orders == [asked.orders(q) for q in questions]
    other = judge("http://127.0.0.1:1/v1", tmp_path, order="random", seed=4)
    assert orders != [other.orders(q) for q in questions]
    with chat_server(lambda *_: completion("SAME")) as server:
        one = judge(server.url, tmp_path, order="random", seed=3).judge(questions[:5])
    assert [tuple(a.order for a in verdict.answers) for verdict in one] == orders[:5]
    assert len(server.requests) == 5


def test_answers_are_kept_and_failures_asked_again(tmp_path: Path) -> None:
    def first(number: int, body: dict[str, Any]) -> Response:
        return Response(400, {}) if "cats 1" in str(body) else completion("MAYBE")

    questions = [question(i) for i in range(3)]
    with chat_server(first) as server:
        url = server.url
        verdicts = judge(url, tmp_path).judge(questions)
        assert [v.outcome.value for v in verdicts] == ["answered", "error", "answered"]
        assert len(server.requests) == 6
        assert "HTTP 400" in str(verdicts[1].answers[0].error)
        again = judge(url, tmp_path)
        assert len(again.missing(questions)) == 2
        assert [v.outcome.value for v in again.judge(questions)] == ["answered", "error", "answered"]
        assert len(server.requests) == 8
    # Everything that could change the answer is in the key.
    assert judge(url, tmp_path).judge(questions[:1])[0].level is Level.maybe
    for change in ({"model": "larger"}, {"temperature": 0.5}, {"max_tokens": 17}):
        assert len(judge(url, tmp_path, **change).missing(questions[:1])) == 2


def test_answers_of_earlier_versions_are_found(tmp_path: Path) -> None:
    """Answers are paid for: another wording or key would ask for them again."""
    asked = judge("http://127.0.0.1:1/v1/", tmp_path)
    for key in (
        "12029539c2caf8d20f37d29b1721f8bafa2fb68219a9a392ff245a08cf145a85",
        "0dd6797236bae7e9e0fcb306ebe81bbab042f8deaa82d4a707b788bbf4ca34af",
    ):
        payload = {"text": "SAME", "refused": False, "prompt_tokens": 50, "completion_tokens": 2}
        asked.store.put("judge_answers", {"hash": key}, payload)
    known = Question(described("cats"), described("dogs"))
    assert asked.missing([known]) == []
    assert asked.judge([known])[0].level is Level.same


def test_equal_questions_are_asked_once(tmp_path: Path) -> None:
    with chat_server(lambda *_: completion("SAME")) as server:
        verdicts = judge(server.url, tmp_path).judge([question(0)] * 4)
    assert len(server.requests) == 2
    assert [v.level for v in verdicts] == [Level.same] * 4


def test_every_outcome_is_counted_as_what_it_is(tmp_path: Path) -> None:
    replies = {
        "cats 0": completion("Same."),
        "cats 1": completion(None, "content_filter"),
        "cats 2": completion("They are hardly the same."),
        "cats 3": Response(400, {}),
    }

    def respond(_: int, body: dict[str, Any]) -> Response:
        return next(reply for text, reply in replies.items() if text in body["messages"][1]["content"])

    pairs: list[tuple[Description | None, Description | None]] = [(q.a, q.b) for q in map(question, range(4))]
    with chat_server(respond) as server:
        verdicts = judge_all(judge(server.url, tmp_path), [*pairs, (None, described("x"))])
    assert [v.outcome.value for v in verdicts] == ["answered", "refusal", "unparsable", "error", "undescribed"]
    assert verdicts[2].answers[0].text == "They are hardly the same."


def test_one_failed_order_fails_the_pair(tmp_path: Path) -> None:
    def respond(_: int, body: dict[str, Any]) -> Response:
        return completion("SAME") if shown_first(body) == "cats" else completion("Hm.")

    with chat_server(respond) as server:
        (verdict,) = judge(server.url, tmp_path).judge([question(0)])
    assert (verdict.outcome, verdict.level, len(verdict.answers)) == (Outcome.unparsable, None, 2)


@pytest.mark.parametrize(("status", "requests"), [(401, 1), (500, 4)])
def test_a_failing_endpoint_is_left_alone(tmp_path: Path, status: int, requests: int) -> None:
    with chat_server(lambda *_: Response(status, {})) as server:
        asked = judge(server.url, tmp_path, concurrency=1, max_failures=4)
        verdicts = asked.judge([question(i) for i in range(10)])
    assert len(server.requests) == requests
    assert {v.outcome for v in verdicts} == {Outcome.error}
    assert "not asked" in str(verdicts[-1].answers[-1].error)


def test_concurrency_is_used_and_kept(tmp_path: Path) -> None:
    three = threading.Barrier(3)

    def once_three_have_come(*_: object) -> Response:
        three.wait(timeout=30)
        return completion("SAME")

    with chat_server(once_three_have_come) as server:
        verdicts = judge(server.url, tmp_path, concurrency=3).judge([question(i) for i in range(6)])
    assert server.busiest == 3
    assert {v.outcome for v in verdicts} == {Outcome.answered}


SCRIPT = """
import sys
from pathlib import Path
from tests.judging.test_endpoint import judge, question
judge(sys.argv[1], Path(sys.argv[2]), concurrency=1).judge([question(i) for i in range(10)])
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, repository: Path) -> None:
    killed = threading.Event()

    def respond(number: int, _: dict[str, Any]) -> Response:
        if number == 8:
            killed.wait(timeout=60)
        return completion("SAME")

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(repository / "src"), str(repository)])}
    with chat_server(respond) as server:
        command = [sys.executable, "-c", SCRIPT, server.url, str(tmp_path)]
        process = subprocess.Popen(command, env=environment)
        try:
            while len(server.requests) < 9 and process.poll() is None:
                time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed.set()
        assert len(list(tmp_path.rglob("*.safetensors"))) == 8
        verdicts = judge(server.url, tmp_path).judge([question(i) for i in range(10)])
    assert len(server.requests) == 9 + 12
    assert {v.level for v in verdicts} == {Level.same}


def test_cost_by_hand() -> None:
    chat = [{"role": "system", "content": "x" * 40}, {"role": "user", "content": "y" * 10}]
    cost = endpoint(price_input=1.0, price_output=2.0).cost([chat, chat])
    # (40/4 + 8) + (ceil(10/4) + 8) = 29 tokens per chat
    assert (cost.requests, cost.prompt_tokens, cost.completion_tokens) == (2, 58, 32)
    assert cost.dollars == pytest.approx((58 * 1.0 + 32 * 2.0) / 1e6)
    assert endpoint(price_output=2.0).cost([chat]).dollars is None


@pytest.mark.parametrize("character", ["a", "é", "語", "🐈"])
def test_the_bound_is_one(character: str) -> None:
    longest = Question(described(character * 200), described(character * 200))
    cfg = endpoint(description_chars=200, price_input=1.0, price_output=1.0, order="random")
    exact = cfg.cost([messages(longest, "ab")])
    assert exact.dollars is not None
    with pytest.raises(UserError, match=r"judging\.max_cost"):
        replace(cfg, max_cost=0.99 * exact.dollars).check_cost(1)


def test_too_dear_a_judge_is_refused() -> None:
    cfg = endpoint(price_input=0.15, price_output=0.6, max_cost=0.01)
    cfg.check_cost(1)
    with pytest.raises(UserError, match=r"judging\.max_cost=0\.01"):
        cfg.check_cost(1000)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = endpoint(api_key_variable="JUDGE_KEY")
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(UserError, match="JUDGE_KEY is not set"):
        cfg.client()
    monkeypatch.setenv("JUDGE_KEY", "sk-\nx")
    with pytest.raises(UserError, match="can be sent") as error:
        cfg.client()
    assert "sk-" not in str(error.value)
    monkeypatch.setenv("JUDGE_KEY", "sk-1")
    assert cfg.client().redact("sk-1") == "***"
    assert "sk-1" not in str(vars(endpoint().client()))
