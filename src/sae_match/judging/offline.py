"""A judge without a language model: how much the top activations of two features overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from sae_match.config.judging_schema import Overlap
from sae_match.judging.descriptions import Place
from sae_match.judging.judge import Question
from sae_match.judging.levels import Judgement, Level, Outcome


@dataclass(frozen=True)
class OfflineJudge:
    """Levels from an overlap in [0, 1]: same from `same_at` on, maybe from `maybe_at` on, else different.

    Attributes:
        overlap: `tokens`: `shared_mass` of the top tokens (or of an explanation's words); `contexts`: `jaccard` of the
            places of the top activations, which both features must have on the same text.
    """

    overlap: Overlap = Overlap.tokens
    same_at: float = 0.5
    maybe_at: float = 0.2

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """One verdict per question; each is answered."""
        return [self._verdict(question) for question in questions]

    def _verdict(self, question: Question) -> Judgement:
        a, b = question.a, question.b
        tokens = self.overlap is Overlap.tokens
        overlap = shared_mass(a.terms, b.terms) if tokens else jaccard(a.places, b.places)
        level = Level.same if overlap >= self.same_at else Level.maybe if overlap >= self.maybe_at else Level.different
        return Judgement(Outcome.answered, level, overlap=overlap)


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
