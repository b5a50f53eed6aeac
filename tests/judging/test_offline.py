"""The offline judge in closed cases, prompts and their answers, the sample, and the scores."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_match import Permutation
from sae_match.judging import Answer, Judgement, Level, Outcome, Question
from sae_match.judging.chat import messages, read_answer
from sae_match.judging.descriptions import Description
from sae_match.judging.judge import judge_rows, sample_pairs
from sae_match.judging.offline import OfflineJudge, jaccard, shared_mass

COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), max_size=6)


def test_overlaps_by_hand() -> None:
    assert shared_mass({"a": 3, "b": 1}, {"a": 1, "c": 1}) == pytest.approx(0.5)  # min(3/4, 1/2)
    assert shared_mass({"a": 1, "b": 2}, {"a": 2, "b": 4}) == 1.0
    assert shared_mass({"a": 1}, {"b": 1}) == shared_mass({}, {"a": 1}) == shared_mass({}, {}) == 0.0
    assert jaccard({(0, 1), (0, 2)}, {(0, 2), (1, 2)}) == pytest.approx(1 / 3)
    assert jaccard(set(), set()) == 0.0


@given(COUNTS, COUNTS)
def test_shared_mass_is_one_minus_total_variation(a: dict[str, int], b: dict[str, int]) -> None:
    found = shared_mass(a, b)
    assert found == shared_mass(b, a)
    if a and b:
        share = [{term: n / sum(counts.values()) for term, n in counts.items()} for counts in (a, b)]
        distance = sum(abs(share[0].get(t, 0.0) - share[1].get(t, 0.0)) for t in {*a, *b}) / 2
        assert found == pytest.approx(1 - distance)


@pytest.mark.parametrize(
    ("shared", "level"), [(5, "same"), (4, "maybe"), (2, "maybe"), (1, "different"), (0, "different")]
)
@pytest.mark.parametrize("overlap", ["tokens", "contexts"])
def test_thresholds_are_inclusive(overlap: Literal["tokens", "contexts"], shared: int, level: str) -> None:
    """Ten tokens of which `shared` are common; of the places the same share of the union."""
    a = {f"t{i}": 1 for i in range(10)}
    b = {f"t{i}" if i < shared else f"u{i}": 1 for i in range(10)}
    places = frozenset((i, 0) for i in range(10))
    if overlap == "contexts":
        a, b = {"x": 1}, {"x": 1}
    some = frozenset(place for place in places if place[0] < shared)
    question = Question(Description("", a, places), Description("", b, some))
    (verdict,) = OfflineJudge(name="offline", overlap=overlap).judge([question])
    assert (verdict.level, verdict.overlap) == (Level(level), pytest.approx(shared / 10))


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("SAME", "same"), ("same.", "same"), ("**Maybe**", "maybe"), ("Answer: DIFFERENT", "different"),
        ("Final answer: same", "same"), ("3", "same"), ("(1)", "different"), ("2.", "maybe"),
        ("<think>They differ: DIFFERENT?\n</think>\nSAME", "same"), ("SAME\n\nBoth are about cats.", "same"),
        ("Both are about cats.\nSAME\n", "same"), ("SAME\nThat is:\nSAME", "same"),
    ],
)  # fmt: skip
def test_answers_that_state_a_level(text: str, level: str) -> None:
    assert read_answer(text) == (Outcome.answered, Level(level))


@pytest.mark.parametrize(
    "text",
    ["", "  \n", "They are not the same.", "SAME or DIFFERENT", "SAME\nNo, wait.\nDIFFERENT", "4", "similar", "12",
     "<think>SAME", "The answer is SAME"],
)  # fmt: skip
def test_answers_that_do_not(text: str) -> None:
    assert read_answer(text) == (Outcome.unparsable, None)


@pytest.mark.parametrize("text", ["I'm sorry, but I can't help with that.", "As an AI model, I have no opinion."])
def test_refusals(text: str) -> None:
    assert read_answer(text) == (Outcome.refusal, None)
    assert read_answer("SAME", refused=True) == (Outcome.refusal, None)


def test_the_prompt_shows_both_in_the_order_asked() -> None:
    question = Question(Description("cats", {}), Description("dogs", {}))
    ab, ba = (messages(question, order)[1]["content"] for order in ("ab", "ba"))
    assert ab.index("cats") < ab.index("dogs")
    assert ba == ab.replace("cats", "*").replace("dogs", "cats").replace("*", "dogs")


def test_samples_share_their_features() -> None:
    matched = Permutation.random(50, seed=1)
    first, second = (sample_pairs(p.indices, 12, seed=5) for p in (matched, Permutation.identity(50)))
    assert [f for f, _ in first] == [f for f, _ in second] == sorted({f for f, _ in first})
    assert len(first) == 12
    assert all(int(matched.indices[f]) == partner for f, partner in first)
    assert sample_pairs(matched.indices, 12, seed=6) != first
    partial = matched.indices.clone()
    partial[first[0][0]] = -1
    kept = sample_pairs(partial, 12, seed=5)
    assert len(kept) == 12
    assert set(first[1:]) < set(kept)
    assert sample_pairs(torch.tensor([-1, 0]), 12, seed=0) == [(1, 0)]


def verdicts(same: int, maybe: int, different: int, **failed: int) -> list[Judgement]:
    levels = [Level.same] * same + [Level.maybe] * maybe + [Level.different] * different
    found = [Judgement(Outcome.answered, level) for level in levels]
    return found + [Judgement(Outcome(name)) for name, count in failed.items() for _ in range(count)]


def test_shares_count_answered_pairs_and_failures_are_told() -> None:
    rows = {r.metric: r for r in judge_rows(verdicts(5, 3, 2, error=4, undescribed=6), (1, 2), "matched")}
    assert [rows[f"judge/{name}"].value for name in ("same", "maybe", "different")] == pytest.approx([0.5, 0.3, 0.2])
    assert rows["judge/score"].value == pytest.approx((15 + 6 + 2) / 10)
    assert rows["judge/same"].n == 10
    counts = {name: row.value for name, row in rows.items() if name.startswith("judge_count")}
    assert counts == {
        "judge_count/answered": 10, "judge_count/error": 4, "judge_count/refusal": 0,
        "judge_count/unparsable": 0, "judge_count/undescribed": 6,
    }  # fmt: skip
    estimate = rows["judge/same"].estimate
    assert estimate is not None
    low, high = estimate.interval
    half = 1.96 * math.sqrt(0.5 * 0.5 / 10)
    assert (low, high) == (pytest.approx(0.5 - half, abs=0.11), pytest.approx(0.5 + half, abs=0.11))


def test_a_share_of_none_of_22_has_an_interval_with_width() -> None:
    rows = {r.metric: r for r in judge_rows(verdicts(0, 2, 20, error=4), (1, 2), "random")}
    assert rows["judge/same"].as_dict()["low"] == 0
    assert rows["judge/same"].as_dict()["high"] == pytest.approx(0.14865, abs=1e-5)


def test_nothing_answered_is_undefined_not_zero() -> None:
    rows = {r.metric: r.value for r in judge_rows(verdicts(0, 0, 0, error=3), (1, 2), "matched")}
    assert math.isnan(rows["judge/same"])
    assert rows["judge_count/error"] == 3
    assert [r.value for r in judge_rows([], (1, 2), "matched")] == [0.0] * 5


def test_disagreement_between_orders() -> None:
    def asked(*levels: Level) -> Judgement:
        answers = tuple(Answer(o, Outcome.answered, level) for o, level in zip(("ab", "ba"), levels, strict=False))
        return Judgement(Outcome.answered, Level.maybe, answers)

    pairs = [asked(Level.same, Level.same), asked(Level.same, Level.maybe), asked(Level.maybe)]
    rows = {r.metric: r for r in judge_rows(pairs, (1, 2), "matched")}
    assert (rows["judge/order_disagreement"].value, rows["judge/order_disagreement"].n) == (0.5, 2)
