"""Greedy one-to-one matching, exactly: the globally cheapest pair first."""

from __future__ import annotations

import time
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field

from sae_match.matching.baselines.given import greedy_of
from sae_match.matching.baselines.kernels import FREE, free_entries, match_greedily
from sae_match.matching.baselines.nearest import ADVICE, lists_bytes
from sae_match.matching.baselines.neighbours import Bools, Ints, NearestLists, Neighbours
from sae_match.matching.memory import problem_bytes
from sae_match.matching.permutation import UNMATCHED, Permutation
from sae_match.matching.problem import MatchingProblem, SimilarityProblem
from sae_match.matching.solution import Solution, Solver
from sae_match.options import option

LIST_LENGTH = 32
"""Columns of a row's list."""
SHORT = 4
"""Rows with no more free columns than this get a new list along with a row that has none."""


@option
class GreedySolver(Solver):
    """The cheapest pair of features that are both free, again and again; ties by (feature of A, feature of B).

    Every feature of the narrower SAE gets a partner. Rows hold short lists of their nearest columns; where the next
    pair could lie outside a list, lists are made anew over the columns that are still free, so nothing is approximated.
    """

    name: str = "greedy"
    block_rows: Annotated[int, Field(ge=1)] = 1024
    """Rows of the cost matrix computed at a time; changes memory use, not the result."""
    device: str = "cpu"
    """Where products are computed; set by the job."""

    advice: ClassVar[str] = ADVICE

    def required_bytes(self, n_a: int, n_b: int, d: int) -> int:
        """Peak memory of a match: the problem, what is left of B copied twice, one block of products, and the lists
        twice."""
        gathered = 4 * min(self.block_rows, n_a) * d + 3 * n_b * d
        lists = 2 * lists_bytes(n_a, n_b, self.block_rows, LIST_LENGTH)
        return problem_bytes(n_a, n_b, d) + gathered + lists

    def solve(self, problem: MatchingProblem) -> Solution:
        """The greedy matching.

        Raises:
            UserError: too little memory, NaN or infinity, a rejection cost or a number of pairs.
        """
        started = time.monotonic()
        problem.check_complete(self.name)
        n_a, n_b = problem.shape
        self.check_memory(n_a, n_b, problem.left.shape[1])
        search = _Search(Neighbours(problem.left, problem.right, self.device, self.block_rows), n_a, n_b)
        search.run()
        permutation = Permutation(torch.from_numpy(np.where(search.partner == FREE, UNMATCHED, search.partner)), n_b)
        statistics = {
            "seconds/total": time.monotonic() - started,
            "row_remakes": float(search.remade),
            "rounds": float(search.rounds),
        }
        return Solution(permutation, problem.objective(permutation), statistics=statistics)

    def solve_similarity(self, problem: SimilarityProblem) -> Solution:
        """The greedy matching of given similarities."""
        permutation = greedy_of(problem.matrix)
        return Solution(permutation, problem.objective(permutation))


class _Search:
    """The state of a greedy matching: who has whom, and each row's list of nearest free columns."""

    def __init__(self, neighbours: Neighbours, n: int, m: int) -> None:
        self.neighbours, self.wanted = neighbours, min(n, m)
        self.partner, self.owner = np.full(n, FREE, np.int64), np.full(m, FREE, np.int64)
        self.lists: NearestLists = neighbours.nearest(np.arange(n), min(LIST_LENGTH, m))
        self.cursor = np.zeros(n, np.int64)
        self.remade = self.rounds = 0

    def run(self) -> None:
        """Match until every feature of the narrower side has a partner."""
        while match_greedily(self.wanted, *self.lists, self.cursor, self.partner, self.owner) < self.wanted:
            self._remake()

    @property
    def _taken(self) -> Bools:
        return np.asarray(self.owner != FREE)

    def _remake(self) -> None:
        """New lists for the free rows whose lists are used up or nearly so."""
        free = self._taken[self.neighbours.columns]
        if free.sum() > len(free) // 2:
            self.neighbours.drop(self._taken)
        left = np.empty(len(self.partner), np.int64)
        free_entries(self.lists.columns, self.lists.settled, self.cursor, self.owner, left)
        rows: Ints = np.flatnonzero((self.partner == FREE) & (left <= SHORT) & (self.lists.bound < np.inf))
        for mine, other in zip(
            self.lists, self.neighbours.nearest(rows, self.lists.columns.shape[1], self._taken), strict=True
        ):
            mine[rows] = other
        self.cursor[rows] = 0
        self.remade += len(rows)
        self.rounds += 1
