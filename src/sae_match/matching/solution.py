"""What a solver returns, and what it must offer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from sae_match.matching.permutation import Permutation
from sae_match.matching.problem import MatchingProblem


@dataclass(frozen=True)
class Solution:
    """An assignment and the proof of its quality.

    Attributes:
        permutation: the assignment.
        objective: sum of squared distances of the pairs (and of rejections' costs), float64 accumulation.
        lower_bound: no assignment costs less than this, up to `tolerance`.
        tolerance: absolute uncertainty of `lower_bound` from rounding of the cost matrix.
        statistics: what the solver did: seconds per phase, counts, peak memory.
    """

    permutation: Permutation
    objective: float
    lower_bound: float
    tolerance: float
    statistics: dict[str, float] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """Relative optimality gap, (objective - lower_bound) / objective; 0 where both are 0."""
        difference = self.objective - self.lower_bound
        return difference / self.objective if difference > 0 else 0.0


class Solver(Protocol):
    """An assignment solver."""

    @property
    def name(self) -> str:
        """Name in provenance."""

    def check_memory(self, n_a: int, n_b: int, d: int) -> None:
        """Raise UserError, before anything is allocated, where a problem of this size does not fit."""

    def solve(self, problem: MatchingProblem) -> Solution:
        """The minimum-cost one-to-one matching in which every feature of the narrower SAE has a partner."""
