"""Baselines of one step each: the identity, a random matching, and the exact matching by direction alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.permutation import UNMATCHED, Permutation
from sae_match.matching.problem import MatchingProblem, SimilarityProblem, unit_rows
from sae_match.matching.solution import Solution, Solver, problem_bytes
from sae_match.options import option


@option
class VanillaSolver(Solver):
    """Feature i to feature i, as far as both SAEs have one."""

    name: str = "vanilla"

    def required_bytes(self, n_a: int, n_b: int, d: int) -> int:
        """The problem itself."""
        return problem_bytes(n_a, n_b, d)

    def solve(self, problem: MatchingProblem) -> Solution:
        """The identity; where features were set aside, each of the others still goes to its own number."""
        problem.check_complete(self.name)
        n_a, n_b = problem.shape
        rows = torch.arange(n_a) if problem.features_a is None else problem.features_a
        columns = torch.arange(n_b) if problem.features_b is None else problem.features_b
        where = torch.full((int(max(rows.max(), columns.max())) + 1,), UNMATCHED, dtype=torch.int64)
        where[columns] = torch.arange(n_b)
        permutation = Permutation(where[rows], n_b)
        return Solution(permutation, problem.objective(permutation))


@option
class RandomSolver(Solver):
    """A uniformly drawn one-to-one matching of as many features as the narrower SAE has."""

    name: str = "random"
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draw; problems of one size get the same draw."""

    def required_bytes(self, n_a: int, n_b: int, d: int) -> int:
        """The problem itself."""
        return problem_bytes(n_a, n_b, d)

    def solve(self, problem: MatchingProblem) -> Solution:
        """The draw."""
        problem.check_complete(self.name)
        return self.solve_similarity(problem)

    def solve_similarity(self, problem: SimilarityProblem | MatchingProblem) -> Solution:
        """The draw."""
        permutation = Permutation.random(*problem.shape, seed=self.seed)
        return Solution(permutation, problem.objective(permutation))


@option
class CosineSolver(CertifiedSolver):
    """The exact matching of the rows scaled to unit norm: the largest sum of cosines.

    A row of zeros has no direction and stays zero: at distance 1 from every unit row, 0 from another zero row.
    The objective is that of the original problem, so it bounds nothing; `cosine_objective` and `cosine_gap` are those
    of the scaled problem.
    """

    name: str = "cosine"

    limits_pairs: ClassVar[bool] = False
    advice: ClassVar[str] = "narrower SAEs, matching=decoder or a machine with more memory"

    def required_bytes(self, n_a: int, n_b: int, d: int) -> int:
        """Peak memory of a match: that of the exact solver, and the scaled rows."""
        return CertifiedSolver.required_bytes(self, n_a, n_b, d) + 4 * (n_a + n_b) * d

    def solve(self, problem: MatchingProblem) -> Solution:
        """The matching with the largest sum of cosines.

        Raises:
            UserError: too little memory, NaN or infinity, a rejection cost or a number of pairs.
        """
        self.check_complete(problem)
        scaled = replace(problem, left=unit_rows(problem.left), right=unit_rows(problem.right))
        solution = CertifiedSolver.solve(self, scaled)
        statistics = {**solution.statistics, "cosine_objective": solution.objective}
        if solution.gap is not None:
            statistics["cosine_gap"] = solution.gap
        return Solution(solution.permutation, problem.objective(solution.permutation), statistics=statistics)
