"""Baselines that look at the closest pairs alone: nearest neighbors, the mutual ones of them, and greedy pairing.

The lowest index comes first among equals.
"""

from __future__ import annotations

import heapq
import time
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field

from sae_match.matching.baselines.neighbors import FREE, Bools, Ints, NearestLists, Neighbors
from sae_match.matching.permutation import UNMATCHED, Permutation
from sae_match.matching.problem import MatchingProblem, SimilarityProblem
from sae_match.matching.solution import Solution, Solver, problem_bytes
from sae_match.options import option

FIRST_LENGTH = 4
"""Candidates whose exact distance is computed before anything is known about how close the others are."""
LIST_LENGTH = 32
"""Columns of a row's list in the greedy matching."""
MANY = 2**16
"""Pairs that are looked at one after another as Python integers."""
SHORT = 4
"""Rows with no more free columns than this get a new list along with a row that has none."""


def lists_bytes(n: int, m: int, d: int, block_rows: int, length: int) -> int:
    """Candidate lists of n rows, norms, one block of products, and the rows gathered for it."""
    block = min(block_rows, n)
    return n * (16 * length + 40) + 80 * m + 4 * block * (m + d)


@option
class NearestSolver(Solver):
    """Every feature of A to the feature of B at the least distance, the lowest index first; many-to-one."""

    name: str = "nearest"
    block_rows: Annotated[int, Field(ge=1)] = 1024
    """Rows of the cost matrix computed at a time; changes memory use, not the result."""
    device: str = "cpu"
    """Where products are computed; set by the job."""

    advice: ClassVar[str] = "a smaller solver.block_rows, narrower SAEs or a machine with more memory"

    def required_bytes(self, n_a: int, n_b: int, d: int) -> int:
        """Peak memory of a match: the problem, one block of products, and the lists."""
        return problem_bytes(n_a, n_b, d) + lists_bytes(n_a, n_b, d, self.block_rows, FIRST_LENGTH)

    def solve(self, problem: MatchingProblem) -> Solution:
        """The nearest feature of B for every feature of A.

        Raises:
            UserError: too little memory, NaN or infinity, a rejection cost or a number of pairs.
        """
        self.check_complete(problem)
        permutation = Permutation(torch.from_numpy(self._nearest(problem)), problem.shape[1], many_to_one=True)
        partners = float(len(permutation.indices.unique()))
        return Solution(permutation, problem.objective(permutation), statistics={"distinct_partners": partners})

    def solve_similarity(self, problem: SimilarityProblem) -> Solution:
        """The most similar feature of B for every feature of A."""
        best = torch.from_numpy(problem.matrix.numpy().argmax(axis=1))
        permutation = Permutation(best, problem.shape[1], many_to_one=True)
        return Solution(permutation, problem.objective(permutation))

    def _nearest(self, problem: MatchingProblem) -> Ints:
        neighbors = Neighbors(problem.left, problem.right, self.device, self.block_rows)
        return neighbors.nearest(np.arange(problem.shape[0]), FIRST_LENGTH).columns[:, 0]


@option
class MutualSolver(NearestSolver):
    """Pairs of features of which each is the other's nearest (the lowest index first); the rest stay unmatched."""

    name: str = "mutual"

    def required_bytes(self, n_a: int, n_b: int, d: int) -> int:
        """Peak memory of a match: the problem, one block of products, and the lists."""
        widest = max(n_a, n_b)
        return problem_bytes(n_a, n_b, d) + lists_bytes(widest, widest, d, self.block_rows, FIRST_LENGTH)

    def solve(self, problem: MatchingProblem) -> Solution:
        """The mutual nearest neighbors.

        Raises:
            UserError: too little memory, NaN or infinity, a rejection cost or a number of pairs.
        """
        self.check_complete(problem)
        there, back = self._nearest(problem), self._nearest(MatchingProblem(problem.right, problem.left))
        permutation = _mutual(there, back)
        pairs = float(len(permutation.matched))
        return Solution(permutation, problem.objective(permutation), statistics={"pairs": pairs})

    def solve_similarity(self, problem: SimilarityProblem) -> Solution:
        """The mutual nearest of given similarities."""
        values = problem.matrix.numpy()
        permutation = _mutual(values.argmax(axis=1), values.argmax(axis=0))
        return Solution(permutation, problem.objective(permutation))


def _mutual(there: Ints, back: Ints) -> Permutation:
    """The pairs that choose each other."""
    chosen = np.where(back[there] == np.arange(len(there)), there, UNMATCHED)
    return Permutation(torch.from_numpy(chosen), len(back))


@option
class GreedySolver(NearestSolver):
    """The cheapest pair of features that are both free, again and again; ties by (feature of A, feature of B).

    Every feature of the narrower SAE gets a partner. Rows hold short lists of their nearest columns; where the next
    pair could lie outside a list, lists are made anew over the columns that are still free, so nothing is approximated.
    """

    name: str = "greedy"

    def required_bytes(self, n_a: int, n_b: int, d: int) -> int:
        """Peak memory of a match: the problem, what is left of B copied twice, one block of products, and the lists
        twice."""
        gathered = 4 * min(self.block_rows, n_a) * d + 3 * n_b * d
        return problem_bytes(n_a, n_b, d) + gathered + 2 * lists_bytes(n_a, n_b, 0, self.block_rows, LIST_LENGTH)

    def solve(self, problem: MatchingProblem) -> Solution:
        """The greedy matching.

        Raises:
            UserError: too little memory, NaN or infinity, a rejection cost or a number of pairs.
        """
        started = time.monotonic()
        self.check_complete(problem)
        n_a, n_b = problem.shape
        search = _Search(Neighbors(problem.left, problem.right, self.device, self.block_rows), n_a, n_b)
        search.run()
        permutation = Permutation(torch.from_numpy(search.partner), n_b)
        statistics = {
            "seconds/total": time.monotonic() - started,
            "row_remakes": float(search.remade),
            "rounds": float(search.rounds),
        }
        return Solution(permutation, problem.objective(permutation), statistics=statistics)

    def solve_similarity(self, problem: SimilarityProblem) -> Solution:
        """The greedy matching of given similarities."""
        values = problem.matrix.numpy()
        n, m = values.shape
        partner, free = np.full(n, UNMATCHED, np.int64), np.ones(m, dtype=np.bool_)
        heap = [(-float(values[i, j]), i, int(j)) for i, j in enumerate(values.argmax(axis=1))]
        heapq.heapify(heap)
        for _ in range(min(n, m)):
            while True:
                _, i, j = heapq.heappop(heap)
                if free[j]:
                    break
                j = int(np.where(free, values[i], -np.inf).argmax())
                heapq.heappush(heap, (-float(values[i, j]), i, j))
            partner[i], free[j] = j, False
        permutation = Permutation(torch.from_numpy(partner), m)
        return Solution(permutation, problem.objective(permutation))


class _Search:
    """The state of a greedy matching: who has whom, and each row's list of nearest free columns."""

    def __init__(self, neighbors: Neighbors, n: int, m: int) -> None:
        self.neighbors, self.wanted = neighbors, min(n, m)
        self.partner, self.taken = np.full(n, UNMATCHED, np.int64), np.zeros(m, np.bool_)
        self.lists: NearestLists = neighbors.nearest(np.arange(n), min(LIST_LENGTH, m))
        self.matched = self.remade = self.rounds = 0

    def run(self) -> None:
        """Match until every feature of the narrower side has a partner."""
        self._match()
        while self.matched < self.wanted:
            self._remake()
            self._match()

    def _free_entries(self) -> Bools:
        """[n, length] entries of the lists that are settled, of columns that are free."""
        columns, _, settled, _ = self.lists
        return np.asarray((np.arange(columns.shape[1]) < settled[:, None]) & ~self.taken[columns])

    def _match(self) -> None:
        """Take the cheapest pair of free features, again and again, until one could lie outside its row's list.

        Pairs are ordered by (cost, row, column); a row whose list is used up waits at its bound, as column FREE.
        """
        columns, costs, _, bound = self.lists
        # Settled entries of free columns, row after row, and behind each row its bound.
        unmatched = self.partner == UNMATCHED
        listed = self._free_entries() & unmatched[:, None]
        waiting = unmatched & (bound < np.inf)
        pair_rows, places = np.nonzero(listed)
        rows = np.concatenate([pair_rows, np.flatnonzero(waiting)])
        chosen = np.concatenate([columns[pair_rows, places], np.full(int(waiting.sum()), FREE)])
        price = np.concatenate([costs[pair_rows, places], bound[waiting]])
        # A row's entries come first, by column, even where they cost as much as its bound.
        order = np.lexsort((chosen, chosen == FREE, rows, price))
        for part in np.split(order, range(MANY, len(order), MANY)):
            for i, j in zip(rows[part].tolist(), chosen[part].tolist(), strict=True):
                if self.partner[i] != UNMATCHED or (j != FREE and self.taken[j]):
                    continue
                if j == FREE:
                    return
                self.partner[i], self.taken[j] = j, True
                self.matched += 1

    def _remake(self) -> None:
        """New lists for the free rows whose lists are used up or nearly so."""
        gone = self.taken[self.neighbors.columns]
        if gone.sum() > len(gone) // 2:
            self.neighbors.drop(self.taken)
        left = self._free_entries().sum(axis=1)
        rows: Ints = np.flatnonzero((self.partner == UNMATCHED) & (left <= SHORT) & (self.lists.bound < np.inf))
        renewed = self.neighbors.nearest(rows, self.lists.columns.shape[1], self.taken)
        for mine, other in zip(self.lists, renewed, strict=True):
            mine[rows] = other
        self.remade += len(rows)
        self.rounds += 1
