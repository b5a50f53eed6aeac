"""What a solver returns, and what it must offer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from sae_match.matching.permutation import Permutation
from sae_match.matching.problem import MatchingProblem


@dataclass(frozen=True)
class Solution:
    """A matching and, where the solver gives one, the proof of its quality.

    Attributes:
        permutation: the matching.
        objective: sum of squared distances of the pairs (and of rejections' costs), float64 accumulation.
        lower_bound: no assignment costs less than this, up to `tolerance`; None = the solver claims no bound.
        tolerance: absolute uncertainty of `lower_bound` from rounding of the cost matrix.
        statistics: what the solver did: seconds per phase, counts, peak memory.
    """

    permutation: Permutation
    objective: float
    lower_bound: float | None = None
    tolerance: float = 0.0
    statistics: dict[str, float] = field(default_factory=dict)

    @property
    def gap(self) -> float | None:
        """Relative optimality gap, (objective - lower_bound) / objective; 0 where both are 0; None without a bound."""
        if self.lower_bound is None:
            return None
        difference = self.objective - self.lower_bound
        return difference / self.objective if difference > 0 else 0.0


NEGLIGIBLE = 1e-9
"""Uncertainty of a bound, relative to the cost of the ordinary pairs, up to which it is none."""


def is_negligible(problem: MatchingProblem, solution: Solution) -> bool:
    """Whether rounding of the costs could not have decided anything but ties."""
    if solution.tolerance == 0 or solution.objective == 0:  # 0 is optimal, whatever was rounded
        return True
    return solution.tolerance <= NEGLIGIBLE * problem.ordinary_cost(solution.permutation)


class Solver(Protocol):
    """An assignment solver, or a baseline that stands in for one."""

    @property
    def name(self) -> str:
        """Name in provenance."""

    def check_memory(self, n_a: int, n_b: int, d: int) -> None:
        """Raise UserError, before anything is allocated, where a problem of this size does not fit."""

    def solve(self, problem: MatchingProblem) -> Solution:
        """A matching. The exact solvers return a one-to-one matching of minimal cost in which every feature of the
        narrower SAE has a partner, unless the problem says otherwise; each baseline says what it returns.

        Raises:
            UserError: NaN or infinity, too little memory, or limits to the pairs that the solver does not know.
        """
