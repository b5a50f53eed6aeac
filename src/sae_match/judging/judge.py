"""The interface of judges, and asking one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sae_match.judging.descriptions import Description
from sae_match.judging.levels import UNDESCRIBED, Judgement


@dataclass(frozen=True)
class Question:
    """Do two features mean the same? `a` is of layer t, `b` its partner."""

    a: Description
    b: Description


class Judge(Protocol):
    """Anything that compares descriptions."""

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """One verdict per question, in order."""


def judge_all(judge: Judge, pairs: Sequence[tuple[Description | None, Description | None]]) -> list[Judgement]:
    """Verdicts on pairs of descriptions; a pair that lacks one is undescribed and the judge does not see it."""
    questions = [Question(a, b) for a, b in pairs if a is not None and b is not None]
    verdicts = iter(judge.judge(questions))
    return [UNDESCRIBED if a is None or b is None else next(verdicts) for a, b in pairs]
