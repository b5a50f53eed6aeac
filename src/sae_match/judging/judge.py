"""Judges of whether two features mean the same: their options, what they are asked and answer, and the metric rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field, field_validator
from torch import Tensor

from sae_match.judging.descriptions import Description
from sae_match.matching import UNMATCHED
from sae_match.metrics.bootstrap import Bootstrap
from sae_match.metrics.metric import MetricRow
from sae_match.options import option

if TYPE_CHECKING:
    from sae_match.store import Store


class Level(StrEnum):
    """The paper's three levels, in ascending order."""

    different = "different"
    maybe = "maybe"
    same = "same"

    @property
    def score(self) -> int:
        """1 (different), 2 (maybe), 3 (same)."""
        return 1 + list(Level).index(self)


class Outcome(StrEnum):
    """What became of a pair or of one question about it."""

    answered = "answered"
    undescribed = "undescribed"
    error = "error"
    refusal = "refusal"
    unparsable = "unparsable"


FAILURES = (Outcome.error, Outcome.refusal, Outcome.unparsable, Outcome.undescribed)


@dataclass(frozen=True)
class Question:
    """Do two features mean the same? `a` is of layer t, `b` its partner."""

    a: Description
    b: Description


@dataclass(frozen=True)
class Answer:
    """One reply of a language model.

    Attributes:
        order: `ab` where the feature of layer t was shown first, `ba` where its partner was.
        text: what came back, in full; empty for an error.
        error: what went wrong, for an error.
        prompt_tokens, completion_tokens: as the server counted them; None if it did not.
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


def combine(answers: Sequence[Answer]) -> Judgement:
    """One verdict from the replies to a pair's questions.

    Every question must have been answered; otherwise the pair has the first of error, refusal, unparsable that
    occurred. Where the two orders disagree the level is the mean score rounded down: same and different give maybe,
    neighboring levels the lower one.
    """
    replies = tuple(answers)
    for failure in FAILURES:
        if any(answer.outcome is failure for answer in replies):
            return Judgement(failure, answers=replies)
    scores = [answer.level.score for answer in replies if answer.level is not None]
    return Judgement(Outcome.answered, list(Level)[sum(scores) // len(scores) - 1], replies)


class Judge(Protocol):
    """Anything that compares descriptions."""

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """One verdict per question, in order."""


@option
class JudgingKeys:
    """Which pairs are judged, and how their features are described: the keys that every option of the group has."""

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


@option
class NoJudge(JudgingKeys):
    """Descriptions of features are not compared."""

    enabled: ClassVar[Literal[False]] = False


@option
class Judging(JudgingKeys, ABC):
    """A judge and what it is asked; subclasses may live in any package: an option file of the group `judging` names
    one by `_target_`.
    """

    enabled: ClassVar[Literal[True]] = True

    def check(self, pairs: int) -> None:
        """Find out before long work whether judging can begin.

        Args:
            pairs: how many will be judged at most.

        Raises:
            UserError: it cannot.
        """
        return None

    @abstractmethod
    def start(self, questions: Sequence[Question], store: Store) -> Judge:
        """The judge, about to be asked.

        Args:
            questions: all that it will be asked, for what is logged or checked beforehand.
            store: keeps answers from one run to the next.
        """


def sample_pairs(indices: Int[Tensor, " F_a"], n: int, seed: int) -> list[tuple[int, int]]:
    """n pairs (feature, partner) of a matching, in ascending order of the feature; all where there are fewer.

    The features of A are put into one random order that depends on the seed and their number alone, and the first n
    with a partner are taken: matchings of the same SAEs are judged on the same features wherever these are matched.

    Args:
        indices: partner of each feature, -1 where it has none.
    """
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    matched = order[indices[order] != UNMATCHED][:n].sort().values
    return list(zip(matched.tolist(), indices[matched].tolist(), strict=True))


def judge_all(judge: Judge, pairs: Sequence[tuple[Description | None, Description | None]]) -> list[Judgement]:
    """Verdicts on pairs of descriptions; a pair that lacks one is undescribed and the judge does not see it."""
    verdicts = iter(judge.judge([Question(a, b) for a, b in pairs if a is not None and b is not None]))
    return [Judgement(Outcome.undescribed) if a is None or b is None else next(verdicts) for a, b in pairs]


def judge_rows(
    judgements: Sequence[Judgement], layers: tuple[int, int], variant: str, samples: int = 1000, seed: int = 0
) -> list[MetricRow]:
    """`judge/same`, `/maybe`, `/different` (shares of the answered pairs, adding up to 1) and `judge/score` (their mean
    of 1 to 3, as in the paper's Figure 8), with 95 % intervals over pairs: Wilson's for shares, a bootstrap for the
    score; `judge/order_disagreement`, the share of pairs asked in both orders that got two levels;
    `judge_count/answered` and one count per way to fail.

    Shares are NaN where no pair was answered.
    """
    answered = np.array([judgement.outcome is Outcome.answered for judgement in judgements])
    levels = [judgement.level for judgement in judgements]
    n = int(answered.sum())
    rows: list[MetricRow] = []
    if judgements:
        bootstrap = Bootstrap(len(judgements), samples, seed)
        values = {level.value: np.array([found is level for found in levels]) for level in reversed(Level)}
        values["score"] = np.array([0 if level is None else level.score for level in levels])
        for name, numbers in values.items():
            estimate = bootstrap.ratio(numbers.astype(np.float64), answered.astype(np.float64))
            if name != "score" and n > 0:
                estimate = replace(estimate, trials=n)
            rows.append(MetricRow(*layers, variant, f"judge/{name}", estimate.value, n, estimate))
    both = [j.answers for j in judgements if j.outcome is Outcome.answered and len(j.answers) == 2]
    if both:
        share = sum(first.level is not second.level for first, second in both) / len(both)
        rows.append(MetricRow(*layers, variant, "judge/order_disagreement", share, len(both)))
    for outcome in (Outcome.answered, *FAILURES):
        count = sum(judgement.outcome is outcome for judgement in judgements)
        rows.append(MetricRow(*layers, variant, f"judge_count/{outcome.value}", float(count), len(judgements)))
    return rows
