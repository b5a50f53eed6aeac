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
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from sae_match.assignment.arrays import MAX_SPREAD, NO_POTENTIALS, Bool, Costs, Float32, Float64, Int32, Int64
from sae_match.assignment.exact_numbers import (
    LIMB_BITS,
    as_floats,
    as_integers,
    exact_remainders,
    lowest_exponent,
    squares,
    with_potentials,
)
from sae_match.assignment.grid import cost_bits, row_norms
from sae_match.assignment.lazy import LazyAssignment
from sae_match.assignment.proof import Attempt, Proof, complete, list_duals, pairs_within, prove
from sae_match.assignment.rows import RemainderRows
from sae_match.assignment.sparse_exact import Remainders, finish
from sae_match.assignment.workspace import Stopped

logger = logging.getLogger(__name__)

FIRST_CAP = 2.0**16
"""Where the first level's grid ends, in units of a typical remainder."""
SAMPLE_ROWS = 64
"""Rows from which the typical remainder is taken."""
MOST_NEAR = 64
"""Pairs per row that are left to Python integers."""
MOST_STEPS = 20_000_000
"""Work that Python integers are given: free rows times pairs."""
MOST_LONG = 2048
"""Rows and columns far longer than the others whose competition is settled first."""
ROUNDS = 100
"""Rounds of shortest paths for the potentials of the long ones."""


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
        block_rows, threads, cached: as in `QuantizedRows`.
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
        limit, found = MOST_NEAR * self.n, []
        for block in lazy.similarity.blocks():
            pairs = pairs_within(lazy, block, lazy.similarity.get(block), dual, slack, limit)
            if pairs is None:
                return None
            found.append(pairs)
            limit -= len(pairs[0])
            lazy.check_time()
        rows, columns = (np.concatenate(side) for side in zip(*found, strict=True))
        return rows, columns


def exact_factors(left: Float32, right: Float32, *, rejection_cost: float | None, **options: Any) -> ExactProblem:
    """The problem of squared distances of rows, n <= m, in units that `rejection_cost` is a multiple of.

    Args:
        options: fields of `ExactProblem` from `block_rows` on.
    """
    lowest = 2 * min(lowest_exponent(left), lowest_exponent(right))
    if rejection_cost is not None and 0 < rejection_cost < math.inf:
        # No squared distance of float32 rows but 0 is below 2^-298.
        lowest = min(lowest, max(-400, math.frexp(rejection_cost)[1] - 53))
    norms = row_norms(left, options["threads"]), row_norms(right, options["threads"])
    bits = 2 * math.frexp(max(float(norms[0].max()), float(norms[1].max())))[1] + 8 - lowest
    n, m = len(left), len(right)
    costs = Costs(
        left=left, right=right, given=np.empty(0, np.int64), left_norm=np.ones(n), right_norm=np.ones(m, np.float32),
        column_cost=np.zeros(m, np.int64), private_cost=np.empty(0, np.int64), unit=1.0, gamma=0.0,
        potentials=NO_POTENTIALS._replace(lowest=lowest),
    )  # fmt: skip
    limbs = bits // LIMB_BITS + 4
    row_squares, column_squares = squares(left, lowest, limbs), squares(right, lowest, limbs)
    return ExactProblem(costs, norms, row_squares, column_squares, [], bits, cost_bits(n) - 1, **options)


def exact_similarities(costs: Costs, **options: Any) -> ExactProblem:
    """The problem of given inner products, n <= m: the cost of a pair is minus twice its inner product.

    Args:
        costs: which rows of which matrix.
        options: fields of `ExactProblem` from `block_rows` on.
    """
    # The cost -2 S is a multiple of twice what S is a multiple of.
    lowest = lowest_exponent(costs.left) + 1
    top = np.maximum(costs.left.max(axis=1), -costs.left.min(axis=1))[costs.given].astype(np.float64)
    n, m = len(costs.given), len(costs.right_norm)
    exact = costs._replace(
        potentials=NO_POTENTIALS._replace(lowest=lowest), column_cost=np.zeros(m, np.int64), gamma=0.0
    )  # fmt: skip
    bits = math.frexp(float(top.max()))[1] + 8 - lowest
    return ExactProblem(exact, (top, np.ones(m)), [0] * n, [0] * m, [], bits, cost_bits(n) - 1, **options)


def solve_exactly(problem: ExactProblem) -> Attempt:
    """The optimum in exact arithmetic, or the best assignment and its deficit when time or memory ran out.

    Deficits are in units of 2^lowest; the search is that of the last level.
    """
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
            if lazy.listed():  # lists exist, so the prices reached give a bound
                problem.add_duals(lazy, list_duals(lazy)[0])
            proof = Proof(partner, problem.deficit(partner[lazy.places]), 0, str(stopped))
        for phase, taken in lazy.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + taken
        if isinstance(proof, Proof):
            lazy.seconds = seconds
            return Attempt(proof, lazy, problem.costs_of)
        shift = max(0, (2 * proof).bit_length() - problem.cap_bits)


def _one_level(problem: ExactProblem, lazy: LazyAssignment) -> Proof | int:
    """Solve one level; the proof, or the deficit that is left."""
    stopped = lazy.run()
    if stopped is not None:
        raise stopped
    shift = lazy.costs.potentials.shift
    last = shift == 0 and problem.levels > 1
    proof = prove(lazy, verify=True) if last else None
    dual, _ = list_duals(lazy)
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
    partner, ties = found
    return Proof(partner, 0, ties, None)


# Among rows and columns that are far longer than the others, a pair costs orders of magnitude more or less than any
# other, so which of them compete is settled first: otherwise their conflicts would set the scale of the first grid. The
# others are one anonymous partner here. The result only has to be good, not right: whatever it is, the row potentials
# that follow make it feasible.


def long_ones(norms: tuple[Float64, Float64]) -> tuple[Bool, Bool] | None:
    """Which rows and columns are far longer than the median one; None where they are none or too many to tell."""
    median = float(np.median(np.concatenate(norms)))
    rows, columns = (side > MAX_SPREAD * median for side in norms)
    if median == 0 or not 0 < int(rows.sum()) + int(columns.sum()) <= MOST_LONG:
        return None
    return rows, columns


def competing_potentials(cost: Float64, row_alone: Float64, column_alone: Float64) -> Float64:
    """Potentials of the columns, relative to those of all columns outside.

    Args:
        cost: [k, l] cost of long rows in long columns.
        row_alone: [k] least cost of each row in another column.
        column_alone: [l] least cost of each column in another row.
    """
    k, m = cost.shape
    small = np.zeros((k + m, m + k))
    small[:k, :m], small[:k, m:], small[k:, :m] = cost, row_alone[:, None], column_alone[None, :]
    assigned = linear_sum_assignment(small)[1]
    own = small[np.arange(k + m), assigned]
    potential = np.zeros(k + m)
    for _ in range(ROUNDS):
        reached = (small + (potential[assigned] - own)[:, None]).min(axis=0)
        if (reached >= potential).all():
            break
        potential = np.minimum(potential, reached)
    return potential[:m] - (potential[m:] if k else potential).max()
