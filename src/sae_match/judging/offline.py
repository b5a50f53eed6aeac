"""A judge without a language model: how much the top activations of two features overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sae_match.judging.descriptions import Place
from sae_match.judging.judge import Judge, Judgement, Judging, Level, Outcome, Question
from sae_match.options import option
from sae_match.store import Store

Share = Annotated[float, Field(gt=0, le=1)]


@option
class OfflineJudge(Judging):
    """Levels from an overlap in [0, 1]: same from `same_at` on, maybe from `maybe_at` on, else different."""

    overlap: Literal["tokens", "contexts"] = "tokens"
    """tokens: `shared_mass` of the top tokens (or of an explanation's words); contexts: `jaccard` of the places of the
    top activations, which both features must have on the same text."""
    same_at: Share = 0.5
    """Overlap from which on two features count as the same."""
    maybe_at: Share = 0.2
    """Overlap from which on they count as maybe the same."""

    @model_validator(mode="after")
    def _levels_are_ordered(self) -> Self:
        if self.maybe_at > self.same_at:
            raise ValueError(
                f"judging.maybe_at={self.maybe_at}, judging.same_at={self.same_at}: "
                "must be 0 < maybe_at <= same_at <= 1"
            )
        if self.overlap == "contexts" and self.neuronpedia is not None:
            raise ValueError(
                "judging.overlap=contexts: explanations name no places in the text; use judging.overlap=tokens"
            )
        return self

    def start(self, questions: Sequence[Question], store: Store) -> Judge:
        """The judge itself: nothing has to be prepared."""
        return self

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """One verdict per question; each is answered."""
        overlaps = [
            shared_mass(q.a.terms, q.b.terms) if self.overlap == "tokens" else jaccard(q.a.places, q.b.places)
            for q in questions
        ]
        return [Judgement(Outcome.answered, self._level(overlap), overlap=overlap) for overlap in overlaps]

    def _level(self, overlap: float) -> Level:
        if overlap >= self.same_at:
            return Level.same
        return Level.maybe if overlap >= self.maybe_at else Level.different


def shared_mass(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """Sum over terms of min(p_A, p_B), p the term's share of its feature's counts: 1 - total variation distance.

    1 for equal distributions, 0 for disjoint ones or where a feature has no term.
    """
    total_a, total_b = sum(a.values()), sum(b.values())
    if not total_a or not total_b:
        return 0.0
    # Over a common denominator: shares such as 1/3 would not add up to exactly 1.
    shared = sum(min(count * total_b, b[term] * total_a) for term, count in a.items() if term in b)
    return shared / (total_a * total_b)


def jaccard(a: AbstractSet[Place], b: AbstractSet[Place]) -> float:
    """Places that both have over places that either has; 0 where there are none."""
    return len(a & b) / len(a | b) if a or b else 0.0
