"""Exact matching whatever the spread of magnitudes: potentials are refined until the optimum is proved.

Costs that differ by more orders of magnitude than 64 bits hold cannot be rounded to one grid. But an assignment does
not care about row and column potentials: with exact potentials U, V that leave R_ij = C_ij - U_i - V_j >= 0, a complete
assignment whose remainders add up to D is within D of the optimum, and no pair with R_ij > D is in an optimal one. Each
level rounds R down to a grid that ends at 2 D, solves that problem, and adds its duals to the potentials, which makes D
some 2^30 times smaller. When few pairs are left with R_ij <= D, the rest is done in Python integers.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from sae_match.matching.certified.arrays import INFINITE, Costs, Float32, Float64, Int32, Int64
from sae_match.matching.certified.auction_kernels import COUNTERS
from sae_match.matching.certified.check_kernels import near_pairs, row_duals
from sae_match.matching.certified.exact_kernels import LIMB_BITS
from sae_match.matching.certified.exact_numbers import (
    as_floats,
    as_integers,
    exact_remainders,
    with_potentials,
)
from sae_match.matching.certified.lazy import LazyAssignment
from sae_match.matching.certified.long_rows import competing_potentials, long_ones
from sae_match.matching.certified.proof import Proof, complete, prove
from sae_match.matching.certified.similarity import QuantisedRows
from sae_match.matching.certified.sparse_exact import Remainders, finish
from sae_match.matching.certified.workspace import Stopped

logger = logging.getLogger(__name__)

FIRST_CAP = 2.0**16
"""Where the first level's grid ends, in units of a typical remainder."""
SAMPLE_ROWS = 64
"""Rows from which the typical remainder is taken."""
CLIP = 4.0
"""Largest quantised cost of a row in units of its median: a few huge ones must not spoil the resolution of all."""
MOST_NEAR = 64
"""Pairs per row that are left to Python integers."""
MOST_STEPS = 20_000_000
"""Work that Python integers are given: free rows times pairs."""
COLUMN_CHUNK = 1024
"""Columns that are converted to float64 together."""


class RemainderRows(QuantisedRows):
    """Lower bounds of the remainders, as inner products: minus half of them, in units of the cap.

    Args:
        costs: the factors, or given inner products.
        norms: Euclidean norms of rows and columns; of given inner products, their largest magnitudes and 1.
        potentials: of rows and columns, in float64.
        cap: where the grid ends, in cost units.
        cached, block_rows, threads: as in `QuantisedRows`.
    """

    def __init__(
        self,
        costs: Costs,
        norms: tuple[Float64, Float64],
        potentials: tuple[Float64, Float64],
        cap: float,
        cached: bool,
        block_rows: int,
        threads: int,
    ) -> None:
        (row, column), (self.left_norm, self.right_norm) = potentials, norms
        super().__init__(len(row), len(column), cached, block_rows, threads)
        self.costs, self.row, self.column, self.cap = costs, row, column, cap

    def bounds(self, rows: Int64 | slice) -> Float64:
        """[r, m] float64 numbers that no remainder is below."""
        if len(self.costs.given):
            out: Float64 = -2.0 * self.costs.left[self.costs.given[rows]].astype(np.float64)
            relative = 0.0
        else:
            left = self.costs.left[rows].astype(np.float64)
            out = np.empty((len(left), self.m), np.float64)
            for start in range(0, self.m, COLUMN_CHUNK):
                part = slice(start, start + COLUMN_CHUNK)
                right = torch.from_numpy(self.costs.right[part]).to(torch.float64)
                out[:, part] = torch.mm(torch.from_numpy(left), right.T).numpy()
            out *= -2.0
            relative = 2.002 * self.costs.left.shape[1] * 2.0**-53
        row = self.row[rows]
        out -= row[:, None]
        out -= self.column[None, :]
        out -= (2.0**-50 * np.abs(row))[:, None]
        out -= (2.0**-50 * np.abs(self.column))[None, :]
        norms = relative + 2.0**-50
        out -= (norms * self.left_norm[rows])[:, None] * self.right_norm[None, :]
        return out

    def block(self, rows: Int64 | slice) -> Float32:
        """[r, m] minus half the bounds; a bound far above the row's median is lowered."""
        bounds = self.bounds(rows)
        middle = np.partition(bounds, self.m // 2, axis=1)[:, self.m // 2]
        top = np.where(middle > 0, np.minimum(self.cap, CLIP * middle), self.cap)
        # Remainders are never negative, so a bound that is says nothing but that float64 does not resolve the pair.
        np.clip(bounds, 0.0, top[:, None], out=bounds)
        bounds *= -0.5 / self.cap
        return bounds.astype(np.float32)

    def products(self, rows: Int64) -> Float32:
        """[r, m] minus half the bounds."""
        if self.cached:
            return self.quantised[rows] * self.scale[rows, None]
        self.rows_computed += len(rows)
        return self.block(rows)


@dataclass
class ExactProblem:
    """An assignment problem in exact integers of 2^lowest; n rows, m columns, n <= m.

    Attributes:
        costs: factors or given inner products, and the lowest exponent.
        norms: as in `RemainderRows`.
        row_squares: [n] squared norms of the rows: what a pair costs beside `squares` and -2 <left_i, right_j>, and
            what costs here are short of.
        squares: [m] what a column costs every row beside -2 <left_i, right_j>.
        private: [n] cost of leaving a row out; empty where every row must be matched.
        bits: bits that hold every cost and potential.
        cap_bits: bits of the largest cost of a level.
        block_rows, threads, cached: as in `QuantisedRows`.
        indifferent: as in `Workspace`.
    """

    costs: Costs
    norms: tuple[Float64, Float64]
    row_squares: list[int]
    squares: list[int]
    private: list[int]
    bits: int
    cap_bits: int
    block_rows: int
    threads: int
    cached: bool
    deadline: float | None = None
    most_slots: int = 1 << 40
    progress: bool = False
    indifferent: Int64 = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        self.n, self.m = len(self.costs.left_norm), len(self.costs.right_norm)
        self.lowest = self.costs.potentials.lowest
        self.spares = self.m + len(self.private) - self.n
        self.row = [0] * self.n
        self.column = [0] * (self.m + len(self.private))
        self.levels = 0

    def with_rejection(self, cost: int) -> ExactProblem:
        """The same problem where a row may stay out at that cost."""
        private = [cost - own for own in self.row_squares]
        return replace(self, private=private, bits=max(self.bits, cost.bit_length() + 8))

    def units(self, cost: float) -> int:
        """A cost in units of 2^lowest; infinity is more than any pair costs."""
        return 1 << self.bits if cost == math.inf else math.floor(math.ldexp(cost, -self.lowest))

    def costs_of(self, partner: Int32) -> list[int]:
        """Cost of every row in its column, short of the row's own squared norm."""
        rows, real = np.arange(self.n), partner < self.m
        limbs = self.bits // LIMB_BITS + 4
        plain = with_potentials(self.costs, [0] * self.n, [-own for own in self.squares], limbs, 0, 0)
        found = iter(exact_remainders(plain, rows[real], partner[real].astype(np.int64)))
        return [next(found) if inside else self.private[i] for i, inside in enumerate(real.tolist())]

    # Potentials

    @property
    def ceiling(self) -> int:
        """Minus the potential of the spare rows, which cost nothing in any column."""
        return max(self.column)

    def offsets(self) -> list[int]:
        """[m] column potentials less the columns' own costs."""
        return [v - own for v, own in zip(self.column, self.squares, strict=False)]

    def rows(self, cap: float) -> RemainderRows:
        """Source of the remainders at the potentials as they are."""
        potentials = as_floats(self.row, self.lowest), as_floats(self.offsets(), self.lowest)
        return RemainderRows(
            self.costs, self.norms, potentials, cap, self.cached, self.block_rows, self.threads
        )  # fmt: skip

    def reduce(self) -> None:
        """First potentials: the least cost of every row, then the least remainder of every column."""
        self._settle_long_ones()
        source = self.rows(1.0)
        least = np.empty(self.n)
        for block in source.blocks():
            least[block] = source.bounds(block).min(axis=1)
        self.row = as_integers(least, self.lowest)
        if self.private:
            self.row = [min(u, out) for u, out in zip(self.row, self.private, strict=True)]
        source = self.rows(1.0)
        lowest = np.full(self.m, np.inf)
        for block in source.blocks():
            np.minimum(lowest, source.bounds(block).min(axis=0), out=lowest)
        column = [v + more for v, more in zip(self.column, as_integers(lowest, self.lowest), strict=False)]
        column += [out - u for out, u in zip(self.private, self.row, strict=False)]
        if self.spares:
            ceiling = sorted(column)[self.n]
            column = [min(v, ceiling) for v in column]
        self.column = column

    def _settle_long_ones(self) -> None:
        """Potentials of columns that are far longer than others, from their competition for rows alone."""
        found = long_ones(self.norms)
        if found is None:
            return
        rows, columns = found
        source = self.rows(1.0)
        # More than any pair costs, where there are no other rows or columns.
        large = 4.0 * max(float(side.max()) for side in self.norms) ** 2
        least = np.full(self.m, large)
        for block in source.blocks():
            short = block[~rows[block]]
            if len(short):
                np.minimum(least, source.bounds(short).min(axis=0), out=least)
        if self.spares:
            least = np.minimum(least, 0.0)
        costs = source.bounds(np.flatnonzero(rows))
        alone = costs[:, ~columns].min(axis=1, initial=large)
        if self.private:
            alone = np.minimum(alone, as_floats(self.private, self.lowest)[rows])
        potential = competing_potentials(costs[:, columns], alone, least[columns])
        for j, value in zip(np.flatnonzero(columns).tolist(), as_integers(potential, self.lowest), strict=True):
            self.column[j] = value

    def first_cap(self) -> int:
        """Bits of a cap well above the typical remainder."""
        source = self.rows(1.0)
        sample = np.unique(np.linspace(0, self.n - 1, SAMPLE_ROWS).astype(np.int64))
        typical = float(np.median(np.median(source.bounds(sample), axis=1)))
        # Remainders that are 0 in the main leave nothing to resolve above the lowest bit.
        return math.ceil(math.log2(FIRST_CAP * typical)) - self.lowest if typical > 0 else self.cap_bits

    # Levels

    def level(self, shift: int) -> LazyAssignment:
        """The problem of the remainders on a grid of 2^shift, up to the cap."""
        cap = 1 << self.cap_bits
        slack = [min(cap, (self.ceiling - v) >> shift) for v in self.column] if self.spares else [0] * len(self.column)
        out = [
            min(cap, (own - self.row[i] - self.column[self.m + i]) >> shift) - slack[self.m + i]
            for i, own in enumerate(self.private)
        ]
        exact = self._with_potentials(shift, cap)
        # Spare rows cost nothing in any column: what they leave of their potential is taken from the columns instead.
        costs = exact._replace(
            column_cost=-np.array(slack, np.int64), private_cost=np.array(out, np.int64), unit=float(cap), gamma=0.0,
            right_norm=np.ones(self.m, np.float32),
        )  # fmt: skip
        rows = self.rows(math.ldexp(1.0, self.cap_bits + shift + self.lowest))
        return LazyAssignment(
            costs, np.zeros(self.n, np.int64), rows, self.deadline, self.most_slots, self.progress, self.indifferent
        )

    def add_duals(self, lazy: LazyAssignment, dual: Int64) -> None:
        """Potentials that include the duals of a level."""
        shift = lazy.costs.potentials.shift
        self.row = [u + (d << shift) for u, d in zip(self.row, dual.tolist(), strict=True)]
        moved = (lazy.prices.price - lazy.costs.column_cost).tolist()
        self.column = [v + (p << shift) for v, p in zip(self.column, moved, strict=True)]

    def deficit(self, partner: Int32 | Int64) -> int:
        """By how much the cost of an assignment exceeds the bound that the potentials give."""
        return sum(self.remainders(np.arange(self.n), partner)) + self._spare_deficit(partner)

    def _spare_deficit(self, partner: Int32 | Int64) -> int:
        if not self.spares:
            return 0
        left_over = np.ones(len(self.column), np.bool_)
        left_over[partner] = False
        ceiling = self.ceiling
        # The constant rows take columns of the spare rows, at no cost of their own.
        return sum(ceiling - self.column[j] for j in np.flatnonzero(left_over).tolist())

    def remainders(self, rows: Int64, columns: Int32 | Int64) -> list[int]:
        """Exact remainders of pairs."""
        real = columns < self.m
        found = iter(exact_remainders(self._with_potentials(0, 0), rows[real], columns[real].astype(np.int64)))
        return [
            next(found) if inside else self.private[i] - self.row[i] - self.column[self.m + i]
            for i, inside in zip(rows.tolist(), real.tolist(), strict=True)
        ]

    def _with_potentials(self, shift: int, cap: int) -> Costs:
        largest = max(map(int.bit_length, (*self.row, *self.column)))
        limbs = (max(self.bits, largest) + 8) // LIMB_BITS + 4
        return with_potentials(self.costs, self.row, self.offsets(), limbs, shift, cap)

    def near(self, lazy: LazyAssignment, dual: Int64, slack: int) -> tuple[Int64, Int64] | None:
        """Pairs whose remainders are at most `slack` steps; None where they are too many."""
        if slack >= lazy.costs.potentials.cap:
            return None
        limit, rows, columns = MOST_NEAR * self.n, [], []
        for block in lazy.similarity.blocks():
            quantised, scale, local = lazy.similarity.get(block)
            out, chosen = np.empty((2, limit), np.int32), np.empty(self.m, np.int32)
            counters = np.zeros(COUNTERS, np.int64)
            count = near_pairs(
                block, local, quantised, scale, dual, slack, out, chosen, lazy.costs, lazy.prices, counters
            )  # fmt: skip
            limit -= count
            if limit <= 0:
                return None
            rows.append(out[0, :count].astype(np.int64))
            columns.append(out[1, :count].astype(np.int64))
            lazy.check_time()
        return np.concatenate(rows), np.concatenate(columns)


@dataclass(frozen=True)
class ExactProof:
    """An assignment and its proof in exact integers.

    Attributes:
        proof: with the deficit in units of 2^lowest.
        problem: with potentials that prove the deficit, up to what Python integers added in the end.
        lazy: the last level.
    """

    proof: Proof
    problem: ExactProblem
    lazy: LazyAssignment

    def deficit_of(self, partner: Int32) -> int | None:
        """Deficit of another assignment: that of the proof and what it costs more."""
        if self.proof.deficit is None:
            return None
        own, other = self.problem.deficit(self.proof.partner), self.problem.deficit(partner)
        return self.proof.deficit + other - own


def solve_exactly(problem: ExactProblem) -> ExactProof:
    """The optimum in exact arithmetic, or the best assignment and its deficit when time or memory ran out."""
    problem.reduce()
    shift = max(0, problem.first_cap() - problem.cap_bits)
    seconds: dict[str, float] = {}
    while True:
        lazy = problem.level(shift)
        problem.levels += 1
        try:
            proof = _one_level(problem, lazy)
        except Stopped as stopped:
            partner = complete(lazy, stopped).partner
            if (lazy.lists.bound > -INFINITE).all():  # lists exist, so the prices reached give a bound
                problem.add_duals(lazy, _row_duals(lazy))
            proof = Proof(partner, problem.deficit(partner[lazy.places]), 0, str(stopped))
        for phase, taken in lazy.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + taken
        if isinstance(proof, Proof):
            lazy.seconds = seconds
            return ExactProof(proof, problem, lazy)
        shift = max(0, (2 * proof).bit_length() - problem.cap_bits)


def _one_level(problem: ExactProblem, lazy: LazyAssignment) -> Proof | int:
    """Solve one level; the proof, or the deficit that is left."""
    stopped = lazy.run()
    if stopped is not None:
        raise stopped
    shift = lazy.costs.potentials.shift
    last = shift == 0 and problem.levels > 1
    proof = prove(lazy, verify=True) if last else None
    dual = _row_duals(lazy)
    problem.add_duals(lazy, dual)
    deficit = problem.deficit(lazy.held.partner)
    logger.debug("level %d: steps of 2^%d, deficit 2^%d", problem.levels, shift, deficit.bit_length())
    if proof is not None and deficit == 0:
        return proof
    with lazy.timed("duals"):
        near = problem.near(lazy, dual, (deficit >> shift) + 1)
    if near is None:
        return deficit
    with lazy.timed("exact"):
        found = finish(Remainders.collect(problem, lazy, near, deficit), MOST_STEPS)
    if found is None:
        return deficit
    return Proof(found.partner, 0, found.ties, None)


def _row_duals(lazy: LazyAssignment) -> Int64:
    """Feasible duals of a level; where a list is short, lower than they could be."""
    dual, short = np.empty(lazy.n, np.int64), np.zeros(lazy.n, np.bool_)
    row_duals(0, lazy.n, dual, short, lazy.costs, lazy.prices, lazy.lists, lazy.held, lazy.counters)
    return dual
