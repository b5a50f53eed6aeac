"""The exact assignment solver as a tool of its own, for points or for a matrix: NumPy and Numba, nothing of SAEs.

`assign` returns the optimum with dual potentials that prove it; `linear_sum_assignment` stands in for SciPy's.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sae_match.assignment.arrays import Float32, Float64, Int64
from sae_match.assignment.dense import InfeasibleError, solve_dense
from sae_match.assignment.potentials import BLOCK_ROWS, FLOAT64_BITS, Matrix, bits_of, common_unit, row_potentials
from sae_match.errors import UserError

__all__ = ["Assignment", "assign", "linear_sum_assignment"]

DENSE_ENTRIES = 1 << 24
"""Entries of a float32 matrix from which on candidate lists are faster than shortest paths over all of it."""
FEW_OPERATIONS = 1 << 22
"""Coordinates times pairs of points up to which the matrix of their distances is made."""
NONE = -1
"""A row without a column."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """Who gets whom, and the proof of how good that is.

    Attributes:
        columns: [n] column of every row, -1 = none.
        objective: sum of the pairs' costs, or similarities, and of the rejections.
        bound: no assignment costs less (or has more similarity), all rounding counted.
        gap: |objective - bound| / max(|objective|, |bound|), 0 where both are 0. Whole numbers give exactly 0, other
            numbers what float64 rounds: about 1e-15 of the largest cost per pair in a matrix, up to 1e-9 for points.
        u, v: [n] and [m] dual potentials: u_i + v_j <= cost_ij (>= similarity_ij) for every pair, and their sum is the
            bound. With a rejection cost r, of min(cost_ij, r). The wider side's are <= 0 (>= 0). None with `n_pairs`,
            and, on candidate lists, for points with a rejection cost and where magnitudes are too far apart for one
            grid (then the proof is in exact numbers).
        seconds: wall time.
        stopped: why the search ended before the optimum; None = it did not.
    """

    columns: Int64
    objective: float
    bound: float
    gap: float
    u: Float64 | None
    v: Float64 | None
    seconds: float
    stopped: str | None = None


class _Limits(NamedTuple):
    """What is asked for beside the optimum: as in `assign`."""

    rejection_cost: float | None
    n_pairs: int | None
    deadline: float | None
    threads: int

    @property
    def finite_rejection(self) -> float | None:
        """The cost of leaving a row out; None where no row may be."""
        return None if self.rejection_cost == math.inf else self.rejection_cost

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse what is impossible for a problem of this shape."""
        if self.rejection_cost is not None and self.n_pairs is not None:
            raise UserError("rejection_cost and n_pairs: give one of them")
        if self.rejection_cost is not None and not self.rejection_cost > -math.inf:
            raise UserError(f"rejection_cost={self.rejection_cost}: must be a number, or infinity")
        if self.n_pairs is not None and not 1 <= self.n_pairs <= min(shape):
            raise UserError(f"n_pairs={self.n_pairs}: must be in 1..{min(shape)}")


class _Solved(NamedTuple):
    """A solution of a matrix [n, m] of costs, n <= m.

    Attributes:
        partner: [n] column of every row.
        price: [m] dual potentials of the columns; None = the partners were proved optimal without.
        stopped: why it ended early, or None.
    """

    partner: Int64
    price: Float64 | None
    stopped: str | None


def assign(
    x: npt.ArrayLike | None = None,
    y: npt.ArrayLike | None = None,
    *,
    cost: npt.ArrayLike | None = None,
    similarity: npt.ArrayLike | None = None,
    rejection_cost: float | None = None,
    n_pairs: int | None = None,
    time_limit_s: float | None = None,
    threads: int | None = None,
) -> Assignment:
    """Assign rows to columns one to one at the least cost, or the largest similarity, with a proof.

    Every row of the narrower side gets a column, unless a rejection cost or a number of pairs says otherwise. Give
    points or one of the matrices.

    Parameters
    ----------
    x, y : [n, d] and [m, d]
        Points; a pair costs their squared Euclidean distance.
    cost : [n, m]
        Costs to minimize; +inf = this pair is forbidden.
    similarity : [n, m]
        Similarities to maximize; -inf = this pair is forbidden.
    rejection_cost : float, optional
        What it costs to leave a row of the narrower side out (is taken off a sum of similarities).
    n_pairs : int, optional
        Form exactly so many pairs, the best ones.
    time_limit_s : float, optional
        After so many seconds, a complete assignment is returned with the gap reached.
    threads : int, optional
        Of the search for points and for float32 matrices above 2^24 entries; default: the cores of this process. Matrix
        products follow NumPy's own setting.

    Returns
    -------
    Assignment
        Columns, objective, bound, gap and dual potentials.

    Raises
    ------
    UserError
        Wrong shapes, NaN, infinite points or costs of -inf, impossible limits, or no assignment without a forbidden
        pair.

    Notes
    -----
    Points that float32 holds are solved on short candidate lists: a product of n m d operations, about n^1.6 beyond
    it, and 2 n m bytes, or some kilobytes per point where that does not fit into memory. The answer is optimal for the
    numbers as they are, up to a relative 1e-9 that only ties could notice. Other points, and small problems (n m d up
    to 2^22), are solved on the float64 matrix of their squared distances: convert large sets to float32.

    A matrix is solved by Jonker and Volgenant's shortest augmenting paths: O(n^2 m) at worst, most often far less, a
    copy of the matrix in float64 at most. Sums of whole numbers (or multiples of one power of two) below 2^53 are
    exact; of other numbers, the rounding of float64 is in the gap. A finite float32 matrix above 2^24 entries is solved
    exactly on candidate lists, with one copy in float32. Which one of equal optima is returned is always the same, but
    not specified.

    References
    ----------
    Jonker and Volgenant, Computing 38 (1987); Bertsekas, Annals of Operations Research 14 (1988).

    Examples
    --------
    >>> import numpy as np
    >>> from sae_match.assign import assign
    >>> found = assign(cost=np.array([[4, 1, 3], [2, 0, 5], [3, 2, 2]]))
    >>> found.columns.tolist(), found.objective, found.gap
    ([1, 0, 2], 5.0, 0.0)
    """
    started = time.monotonic()
    deadline = None if time_limit_s is None else started + time_limit_s
    limits = _Limits(rejection_cost, n_pairs, deadline, threads or _cores())
    points = x is not None and y is not None and cost is None and similarity is None
    if points:
        found = _points(_checked(x, "x"), _checked(y, "y"), limits)
    elif x is None and y is None and (cost is None) != (similarity is None):
        sign = 1 if similarity is None else -1
        costs = _checked(cost, "cost", 1) if similarity is None else _checked(similarity, "similarity", -1)
        limits.check(costs.shape)
        n, m = costs.shape
        found = _matrix(costs, limits) if n <= m else _turned(_matrix(costs.T, limits), n)
        if sign < 0:
            u, v = (None if side is None else -side for side in (found.u, found.v))
            # Adding 0 makes a zero positive.
            found = replace(found, objective=0.0 - found.objective, bound=0.0 - found.bound, u=u, v=v)
    else:
        raise UserError("give points x and y, or cost=, or similarity=")
    return replace(found, seconds=time.monotonic() - started)


def linear_sum_assignment(cost_matrix: npt.ArrayLike, maximize: bool = False) -> tuple[Int64, Int64]:
    """`scipy.optimize.linear_sum_assignment`, most often faster; same arguments, result and errors.

    Parameters
    ----------
    cost_matrix : [n, m]
        Finite numbers, or +inf (-inf with `maximize`) for a forbidden pair.
    maximize : bool
        Maximize the sum instead.

    Returns
    -------
    row_ind, col_ind : [min(n, m)] each
        Rows in ascending order and their columns. Where several assignments are optimal, it may be another one than
        SciPy's.

    Raises
    ------
    ValueError
        Not a matrix, invalid numbers, or no assignment without a forbidden pair.

    Notes
    -----
    O(n^2 m) at worst; the arithmetic is SciPy's (float64), so sums of whole numbers below 2^53 are exact. A finite
    float32 matrix above 2^24 entries is solved exactly on candidate lists. `assign` returns the proof as well.
    """
    matrix = np.asarray(cost_matrix)
    worst = -np.inf if maximize else np.inf
    usable = matrix.ndim == 2 and matrix.size > 0 and matrix.dtype.kind in "fiu"
    if not usable or np.isnan(low := matrix.min()) or low == -np.inf != worst or matrix.max() == np.inf != worst:
        # Nothing to solve, or something to refuse: in its own words.
        from scipy.optimize import linear_sum_assignment as reference

        rows, columns = reference(cost_matrix, maximize)
        return rows, columns
    swapped = matrix.shape[0] > matrix.shape[1]
    try:
        partner = _solve(_usable(matrix.T if swapped else matrix, -1 if maximize else 1), None, _cores()).partner
    except InfeasibleError:
        raise ValueError("cost matrix is infeasible") from None
    if swapped:
        order = np.argsort(partner)
        return partner[order].astype(np.intp), order
    return np.arange(len(partner)), partner.astype(np.intp)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _checked(values: npt.ArrayLike | None, name: str, sign: int = 0) -> Matrix:
    """An array that can be solved, as costs; points for sign 0.

    Raises:
        UserError: no matrix, nothing in it, or numbers that are not allowed.
    """
    array = np.asarray(values)
    if array.ndim != 2 or array.size == 0:
        raise UserError(f"{name} is a matrix with at least one row and column, got shape {array.shape}")
    if array.dtype.kind not in "fiub":
        raise UserError(f"{name} holds numbers, got {array.dtype}")
    ends = float(array.min()), float(array.max())
    least, most = ends if sign >= 0 else (-ends[1], -ends[0])
    if not least > -math.inf or (sign == 0 and most == math.inf):
        i, j = np.argwhere(~np.isfinite(array) & (array != sign * np.inf))[0]
        raise UserError(f"{name}[{i}, {j}] is {array[i, j]}: only finite numbers can be assigned")
    return _usable(array, sign or 1)


def _usable(array: npt.NDArray[Any], sign: int) -> Matrix:
    """The costs as the kernels read them: float32 where candidate lists are used, float64 otherwise."""
    listed = array.dtype == np.float32 and array.size > DENSE_ENTRIES and bool(np.isfinite(array).all())
    costs: Matrix = np.asarray(array, np.float32) if listed else np.asarray(array, np.float64)
    return costs if sign > 0 else -costs


def _solve(costs: Matrix, deadline: float | None, threads: int) -> _Solved:
    """Solve a matrix of costs, n <= m.

    Raises:
        InfeasibleError: there is no assignment without a forbidden pair.
    """
    if costs.dtype == np.float64:
        # Kernels are compiled for arrays of one kind.
        partner, price, late = solve_dense(np.require(costs, np.float64, ["C", "A", "W"]), deadline)
        return _Solved(partner, price, "time limit" if late else None)
    from sae_match.assignment.given import solve_given  # it compiles many more kernels

    found = solve_given(np.ascontiguousarray(-costs), BLOCK_ROWS, threads, 1 << 40, deadline)
    return _Solved(found.partner, found.price, found.stopped)


def _matrix(costs: Matrix, limits: _Limits, error: float = 0.0) -> Assignment:
    """The optimum of a matrix of costs, n <= m.

    A complete assignment of min(cost, r) is a best one with rejections: a row that would rather stay out takes any
    column that is left. K pairs are a complete assignment where n - K more columns are as cheap as the cheapest pair.

    Args:
        error: relative error of the costs, for which the bound is lowered.

    Raises:
        UserError: there is no assignment without a forbidden pair.
    """
    n, m = costs.shape
    rejection, n_pairs = limits.finite_rejection, limits.n_pairs
    least, extra = float(costs.min()), 0 if n_pairs is None else n - n_pairs
    whole = costs
    if rejection is not None:
        held = costs.dtype == np.float64 or float(np.float32(rejection)) == rejection
        whole = np.minimum(costs if held else costs.astype(np.float64), rejection)
    elif extra and least < np.inf:
        whole = np.hstack([costs, np.full((n, extra), least, costs.dtype)])
    try:
        partner, price, stopped = _solve(whole, limits.deadline, limits.threads)
    except InfeasibleError:
        raise UserError("every assignment has a forbidden pair: allow more pairs, or give n_pairs") from None
    own = whole[np.arange(n), partner].astype(np.float64)
    u, v = (None, None) if price is None else row_potentials(whole, price, error)
    bound = math.fsum([*(own if u is None or v is None else (*u, *v)), *[-least] * extra])
    out = partner >= m
    if rejection is not None:
        out = costs[np.arange(n), partner] > rejection
    elif n_pairs is not None and extra > out.sum():
        # Added columns are left over: rows that pay no less than they cost can as well be out.
        dearest = np.argsort(np.where(out, -np.inf, own), kind="stable")
        out[dearest[n - (extra - int(out.sum())) :]] = True
    objective = math.fsum(own if n_pairs is None else own[~out])
    proof = (u, v) if n_pairs is None else (None, None)
    return Assignment(np.where(out, NONE, partner), objective, bound, _gap(objective, bound), *proof, 0.0, stopped)


def _turned(found: Assignment, n: int) -> Assignment:
    """The assignment of the transposed problem, whose rows [n] were the columns."""
    columns, rows = np.full(n, NONE), np.flatnonzero(found.columns != NONE)
    columns[found.columns[rows]] = rows
    return replace(found, columns=columns, u=found.v, v=found.u)


def _gap(objective: float, bound: float) -> float:
    scale = max(abs(objective), abs(bound))
    return max(0.0, objective - bound) / scale if scale > 0 else 0.0


def _points(x: Matrix, y: Matrix, limits: _Limits) -> Assignment:
    """The optimum of points."""
    if x.shape[1] != y.shape[1]:
        raise UserError(f"points of {x.shape[1]} and {y.shape[1]} coordinates")
    limits.check((len(x), len(y)))
    if limits.rejection_cost is not None and limits.rejection_cost < 0:
        raise UserError(f"rejection_cost={limits.rejection_cost}: no squared distance is below 0")
    if len(x) > len(y):
        return _turned(_points(y, x, limits), len(x))
    n, m, d = len(x), len(y), x.shape[1]
    if n * m * d > FEW_OPERATIONS:
        # Rounded, they would be another problem.
        with np.errstate(over="ignore"):
            left, right = (np.ascontiguousarray(side, np.float32) for side in (x, y))
        if np.array_equal(left, x) and np.array_equal(right, y):
            return _float32_points(left, right, limits)
    from scipy.spatial.distance import cdist

    sides = [side.astype(np.float64) for side in (x, y)]
    whole = common_unit(sides, (FLOAT64_BITS - bits_of(4 * d)) // 2) > 0
    error = 0.0 if whole else (d + 2) * 2.0**-FLOAT64_BITS
    # By differences, which lose nothing to large coordinates.
    return _matrix(cdist(*sides, "sqeuclidean"), limits, error)


def _float32_points(left: Float32, right: Float32, limits: _Limits) -> Assignment:
    """The optimum of points that float32 holds, n <= m."""
    import psutil

    from sae_match.assignment.points import Limits, solve_points  # it compiles many more kernels
    from sae_match.assignment.workspace import lists_bytes, most_slots

    n, m = len(left), len(right)
    room = float(psutil.virtual_memory().available) - lists_bytes(n, m, True) - 8 * BLOCK_ROWS * m
    cached = 2 * n * m < room
    search = Limits(
        cached, BLOCK_ROWS, limits.threads, deadline=limits.deadline,
        most_slots=most_slots(n, m, cached, room - 2 * n * m * cached),
    )  # fmt: skip
    rejection = limits.finite_rejection
    found = solve_points(left, right, search, rejection_cost=rejection, n_pairs=limits.n_pairs)
    objective = math.fsum([*found.costs.tolist(), (rejection or 0.0) * (n - len(found.costs))])
    # No squared distance is below 0.
    bound = 0.0 if found.deficit is None else max(0.0, objective - found.deficit - found.tolerance)
    u, v = (None, None) if found.duals is None else found.duals
    u = None if u is None else u - found.tolerance / n
    return Assignment(found.partner, objective, bound, _gap(objective, bound), u, v, 0.0, found.stopped)
