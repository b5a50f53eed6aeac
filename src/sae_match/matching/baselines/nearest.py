"""Nearest neighbours: many-to-one, and the mutual ones only."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field

from sae_match.matching.baselines.given import mutual_of, nearest_of
from sae_match.matching.baselines.neighbours import Ints, Neighbours
from sae_match.matching.memory import problem_bytes
from sae_match.matching.permutation import UNMATCHED, Permutation
from sae_match.matching.problem import MatchingProblem, SimilarityProblem
from sae_match.matching.solution import Solution, Solver
from sae_match.options import option

FIRST_LENGTH = 4
"""Candidates whose exact distance is computed before anything is known about how close the others are."""
ADVICE = "a smaller solver.block_rows, narrower SAEs or a machine with more memory"


def lists_bytes(n: int, m: int, block_rows: int, length: int) -> int:
    """Candidate lists of n rows, norms, one block of products, and the rows gathered for it."""
    return n * (16 * length + 40) + 40 * m + 4 * min(block_rows, n) * m + 40 * m


@option
class NearestSolver(Solver):
    """Every feature of A to the feature of B at the least distance, the lowest index first; many-to-one."""

    name: str = "nearest"
    block_rows: Annotated[int, Field(ge=1)] = 1024
    """Rows of the cost matrix computed at a time; changes memory use, not the result."""
    device: str = "cpu"
    """Where products are computed; set by the job."""

    advice: ClassVar[str] = ADVICE

    def required_bytes(self, n_a: int, n_b: int, d: int) -> int:
        """Peak memory of a match: the problem, one block of products, and the lists."""
        gathered = 4 * min(self.block_rows, n_a) * d
        return problem_bytes(n_a, n_b, d) + lists_bytes(n_a, n_b, self.block_rows, FIRST_LENGTH) + gathered

    def solve(self, problem: MatchingProblem) -> Solution:
        """The nearest feature of B for every feature of A.

        Raises:
            UserError: too little memory, NaN or infinity, a rejection cost or a number of pairs.
        """
        problem.check_complete(self.name)
        self.check_memory(*problem.shape, problem.left.shape[1])
        neighbours = Neighbours(problem.left, problem.right, self.device, self.block_rows)
        nearest = _nearest(neighbours, problem.shape[0])
        permutation = Permutation(torch.from_numpy(nearest), problem.shape[1], many_to_one=True)
        partners = float(len(permutation.indices.unique()))
        return Solution(permutation, problem.objective(permutation), statistics={"distinct_partners": partners})

    def solve_similarity(self, problem: SimilarityProblem) -> Solution:
        """The most similar feature of B for every feature of A."""
        permutation = nearest_of(problem.matrix)
        return Solution(permutation, problem.objective(permutation))


@option
class MutualSolver(Solver):
    """Pairs of features of which each is the other's nearest (the lowest index first); the rest stay unmatched."""

    name: str = "mutual"
    block_rows: Annotated[int, Field(ge=1)] = 1024
    """Rows of the cost matrix computed at a time; changes memory use, not the result."""
    device: str = "cpu"
    """Where products are computed; set by the job."""

    advice: ClassVar[str] = ADVICE

    def required_bytes(self, n_a: int, n_b: int, d: int) -> int:
        """Peak memory of a match: the problem, one block of products, and the lists."""
        n, m = max(n_a, n_b), max(n_a, n_b)
        gathered = 4 * min(self.block_rows, n) * d
        return problem_bytes(n_a, n_b, d) + lists_bytes(n, m, self.block_rows, FIRST_LENGTH) + gathered

    def solve(self, problem: MatchingProblem) -> Solution:
        """The mutual nearest neighbours.

        Raises:
            UserError: too little memory, NaN or infinity, a rejection cost or a number of pairs.
        """
        problem.check_complete(self.name)
        n_a, n_b = problem.shape
        self.check_memory(n_a, n_b, problem.left.shape[1])
        there = _nearest(Neighbours(problem.left, problem.right, self.device, self.block_rows), n_a)
        back = _nearest(Neighbours(problem.right, problem.left, self.device, self.block_rows), n_b)
        mutual = back[there] == np.arange(n_a)
        permutation = Permutation(torch.from_numpy(np.where(mutual, there, UNMATCHED)), n_b)
        return Solution(permutation, problem.objective(permutation), statistics={"pairs": float(mutual.sum())})

    def solve_similarity(self, problem: SimilarityProblem) -> Solution:
        """The mutual nearest of given similarities."""
        permutation = mutual_of(problem.matrix)
        return Solution(permutation, problem.objective(permutation))


def _nearest(neighbours: Neighbours, n: int) -> Ints:
    return neighbours.nearest(np.arange(n), FIRST_LENGTH).columns[:, 0]
