"""The two controls that look at no parameter: the identity and a random matching."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sae_match.matching.memory import ChecksMemory, problem_bytes
from sae_match.matching.permutation import UNMATCHED, Permutation
from sae_match.matching.problem import MatchingProblem
from sae_match.matching.solution import Solution


class Control(ChecksMemory):
    """Needs nothing beside the problem itself."""

    advice = "narrower SAEs or a machine with more memory"

    def required_bytes(self, n_a: int, n_b: int, d: int) -> int:
        """Peak memory of a match."""
        return problem_bytes(n_a, n_b, d)


@dataclass(frozen=True)
class VanillaSolver(Control):
    """Feature i to feature i, as far as both SAEs have one.

    Args:
        memory_limit_gib: refuse problems that need more than this; None = what the machine has available.
    """

    memory_limit_gib: float | None = None
    name = "vanilla"

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


@dataclass(frozen=True)
class RandomSolver(Control):
    """A uniformly drawn one-to-one matching of as many features as the narrower SAE has.

    Args:
        seed: seed of the draw; problems of one size get the same draw.
        memory_limit_gib: refuse problems that need more than this; None = what the machine has available.
    """

    seed: int = 0
    memory_limit_gib: float | None = None
    name = "random"

    def solve(self, problem: MatchingProblem) -> Solution:
        """The draw."""
        problem.check_complete(self.name)
        permutation = Permutation.random(*problem.shape, seed=self.seed)
        return Solution(permutation, problem.objective(permutation))
