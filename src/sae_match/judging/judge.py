"""Judges of whether two features mean the same: what they are asked, what they answer, and their common options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import Field, field_validator

from sae_match.judging.descriptions import Description
from sae_match.options import option


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


@dataclass(frozen=True)
class Question:
    """Do two features mean the same? `a` is of layer t, `b` its partner."""

    a: Description
    b: Description


class AnswerCache(Protocol):
    """Where answers are kept by content key (`store.ResultCache` is one)."""

    def get(self, key: str) -> Mapping[str, Any] | None:
        """What was stored, or None."""

    def put(self, key: str, payload: Mapping[str, object]) -> None:
        """Store scalars by name."""


class Judge(Protocol):
    """Anything that compares descriptions."""

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """One verdict per question, in order."""


@option
class Judging(ABC):
    """Which pairs are judged, how their features are described, and the judge, which subclasses are.

    A subclass may live in any package: an option file of the group `judging` names it by `_target_`.

    Class attributes:
        enabled: whether anything is judged.
    """

    enabled: ClassVar[bool] = True

    name: str
    """Short name used in records."""
    pairs: Annotated[int, Field(ge=1)] = 100
    """Pairs per layer pair and variant (matched, random, vanilla), the same features in each where they are matched."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of that sample, and of the order of descriptions for order=random."""
    neuronpedia: str | None = None
    """Folder of Neuronpedia explanations (batch-N.jsonl or .jsonl.gz) with {layer} in it; null = describe features by
    their top-activating contexts on the evaluation text."""
    contexts: Annotated[int, Field(ge=1)] = 10
    """Top contexts per feature, at most one from each window."""
    context_tokens: Annotated[int, Field(ge=0)] = 8
    """Tokens shown on either side of the activating one."""
    description_chars: Annotated[int, Field(ge=100)] = 2000
    """A description is cut to so many characters (whole contexts are left out)."""

    @field_validator("neuronpedia")
    @classmethod
    def _has_a_layer(cls, folder: str | None) -> str | None:
        if folder is not None and "{layer}" not in folder:
            raise ValueError("must contain {layer}, one folder of explanations per layer")
        return folder

    def check(self, pairs: int) -> None:
        """Find out before long work whether judging can begin.

        Args:
            pairs: how many will be judged at most.

        Raises:
            UserError: it cannot.
        """
        return None

    @abstractmethod
    def start(self, questions: Sequence[Question], answers: AnswerCache) -> Judge:
        """The judge, about to be asked.

        Args:
            questions: all that it will be asked, for what is said or checked beforehand.
            answers: those of earlier runs.
        """


@option
class NoJudge(Judging):
    """Descriptions of features are not compared."""

    enabled: ClassVar[bool] = False

    def start(self, questions: Sequence[Question], answers: AnswerCache) -> Judge:
        """Never called."""
        raise NotImplementedError("judging=none compares nothing")


def judge_all(judge: Judge, pairs: Sequence[tuple[Description | None, Description | None]]) -> list[Judgement]:
    """Verdicts on pairs of descriptions; a pair that lacks one is undescribed and the judge does not see it."""
    questions = [Question(a, b) for a, b in pairs if a is not None and b is not None]
    verdicts = iter(judge.judge(questions))
    return [UNDESCRIBED if a is None or b is None else next(verdicts) for a, b in pairs]
