"""Exact matching by direction alone: rows of unit norm."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.problem import MatchingProblem
from sae_match.matching.solution import Solution
from sae_match.options import option

ADVICE = "narrower SAEs, matching=decoder or a machine with more memory"


@option
class CosineSolver(CertifiedSolver):
    """The exact matching of the rows scaled to unit norm: the largest sum of cosines.

    A row of zeros has no direction and stays zero: at distance 1 from every unit row, 0 from another zero row.
    The objective is that of the original problem, so it bounds nothing; `cosine_objective` and `cosine_gap` tell how
    the scaled problem was solved.
    """

    name: str = "cosine"

    limits_pairs: ClassVar[bool] = False
    advice: ClassVar[str] = ADVICE

    def required_bytes(self, n_a: int, n_b: int, d: int) -> int:
        """Peak memory of a match: that of the exact solver, and the scaled rows."""
        return CertifiedSolver.required_bytes(self, n_a, n_b, d) + 4 * (n_a + n_b) * d

    def solve(self, problem: MatchingProblem) -> Solution:
        """The matching with the largest sum of cosines.

        Raises:
            UserError: too little memory, NaN or infinity, a rejection cost or a number of pairs.
        """
        problem.check_complete(self.name)
        self.check_memory(*problem.shape, problem.left.shape[1])
        solution = CertifiedSolver.solve(
            self, replace(problem, left=unit_rows(problem.left), right=unit_rows(problem.right))
        )
        statistics = dict(solution.statistics)
        statistics["cosine_objective"] = solution.objective
        if solution.gap is not None:
            statistics["cosine_gap"] = solution.gap
        return Solution(solution.permutation, problem.objective(solution.permutation), statistics=statistics)


def unit_rows(rows: Float[Tensor, "F D"]) -> Float[Tensor, "F D"]:
    """Rows of unit norm; zero rows stay zero."""
    out = torch.empty_like(rows)
    for low in range(0, len(rows), 4096):
        part = rows[low : low + 4096].to(torch.float64)
        # First by the largest entry: squares of very small or large numbers would leave the range.
        part = part / _without_zeros(part.abs().amax(dim=1, keepdim=True))
        out[low : low + 4096] = part / _without_zeros(part.norm(dim=1, keepdim=True))
    return out


def _without_zeros(norms: Float[Tensor, "F 1"]) -> Float[Tensor, "F 1"]:
    return torch.where(norms == 0, 1.0, norms)
