"""The two controls that look at no parameter: the identity and a random matching."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from sae_match.matching.memory import problem_bytes
from sae_match.matching.permutation import UNMATCHED, Permutation
from sae_match.matching.problem import MatchingProblem, SimilarityProblem
from sae_match.matching.solution import Solution, Solver
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
        permutation = Permutation.random(*problem.shape, seed=self.seed)
        return Solution(permutation, problem.objective(permutation))

    def solve_similarity(self, problem: SimilarityProblem) -> Solution:
        """The draw."""
        permutation = Permutation.random(*problem.shape, seed=self.seed)
        return Solution(permutation, problem.objective(permutation))
