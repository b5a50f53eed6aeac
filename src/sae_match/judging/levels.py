"""What judges say: three levels, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """The paper's three levels."""

    different = "different"
    maybe = "maybe"
    same = "same"

    @property
    def score(self) -> int:
        """1 (different), 2 (maybe), 3 (same)."""
        return _SCORES[self]


_SCORES = {Level.different: 1, Level.maybe: 2, Level.same: 3}


class Outcome(StrEnum):
    """What became of a pair or of one question about it."""

    answered = "answered"
    undescribed = "undescribed"
    error = "error"
    refusal = "refusal"
    unparsable = "unparsable"


FAILURES = (Outcome.error, Outcome.refusal, Outcome.unparsable, Outcome.undescribed)


@dataclass(frozen=True)
class Answer:
    """One reply of a language model.

    Attributes:
        order: `ab` where the feature of layer t was shown first, `ba` where its partner was.
        text: what came back, in full; empty for an error.
        error: what went wrong, for an error.
        prompt_tokens, completion_tokens: as the server counted them; None if it did not say.
    """

    order: str
    outcome: Outcome
    level: Level | None = None
    text: str = ""
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Judgement:
    """The verdict on one pair.

    Attributes:
        level: None unless answered.
        answers: the replies behind it (endpoint judge).
        overlap: the number behind it (offline judge).
    """

    outcome: Outcome
    level: Level | None = None
    answers: tuple[Answer, ...] = ()
    overlap: float | None = None


UNDESCRIBED = Judgement(Outcome.undescribed)
"""Verdict on a pair of which a feature has no description."""


def combine(answers: Sequence[Answer]) -> Judgement:
    """One verdict from the replies to a pair's questions.

    Every question must have been answered; otherwise the pair has the first of error, refusal, unparsable that
    occurred. Where the two orders disagree the level is the mean score rounded down: same and different give maybe,
    neighbouring levels the lower one.
    """
    replies = tuple(answers)
    for failure in FAILURES:
        if any(answer.outcome is failure for answer in replies):
            return Judgement(failure, answers=replies)
    scores = [answer.level.score for answer in replies if answer.level is not None]
    by_score = {score: level for level, score in _SCORES.items()}
    return Judgement(Outcome.answered, by_score[sum(scores) // len(scores)], replies)
