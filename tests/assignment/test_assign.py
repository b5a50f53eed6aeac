"""`sae_match.assign` as a user meets it: points, limits, refusals, SciPy's own behavior, and what it loads."""

from __future__ import annotations

import doctest
import itertools
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from sae_match import UserError
from sae_match import assign as module
from sae_match.assign import assign, linear_sum_assignment
from tests.assignment.problems import best_of, family

seeds = st.integers(0, 10**6)
Points = npt.NDArray[np.float64]


def points_of(kind: str, n: int, d: int, seed: int) -> Points:
    g = np.random.default_rng(seed)
    if kind == "whole":
        return g.integers(-3, 4, (n, d)).astype(np.float64)
    if kind == "far":  # two points differ by far less than they are long
        return 1e6 + g.standard_normal((n, d))
    return g.standard_normal((n, d))


@pytest.mark.parametrize("few", [1 << 22, 0])
@given(kind=st.sampled_from(["whole", "far", "normal"]), n=st.integers(1, 12), m=st.integers(1, 12), seed=seeds,
       dtype=st.sampled_from([np.float32, np.float64]))  # fmt: skip
def test_points(few: int, kind: str, n: int, m: int, seed: int, dtype: type) -> None:
    """On the matrix of distances and on candidate lists."""
    x, y = points_of(kind, n, 3, seed).astype(dtype), points_of(kind, m, 3, seed + 1).astype(dtype)
    cost = cdist(x.astype(np.float64), y.astype(np.float64), "sqeuclidean")
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    best = cost[rows, columns].sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FEW_OPERATIONS", few)
        found = assign(x, y)
    matched = np.flatnonzero(found.columns >= 0)
    assert len(matched) == min(n, m)
    assert cost[matched, found.columns[matched]].sum() == pytest.approx(found.objective, rel=1e-12)
    assert found.objective == pytest.approx(best, rel=1e-9)
    assert found.bound <= best * (1 + 1e-15)
    assert found.gap <= 1e-9 or kind == "far"
    if found.u is not None and found.v is not None:
        slack = 1e-11 * (1 + np.abs(found.u).max() + np.abs(found.v).max())
        assert (cost - found.u[:, None] - found.v[None, :]).min() >= -slack
        assert found.u.sum() + found.v.sum() == pytest.approx(found.bound, abs=(n + m) * slack)
    if kind == "whole" and few:
        assert found.gap == 0 and found.bound == best


def test_float64_points_are_not_rounded() -> None:
    """Rounded to float32, all points would be one, and every assignment as good."""
    x = 1.0 + 1e-9 * np.arange(6)[:, None]
    order = np.array([3, 0, 5, 1, 4, 2])
    assert assign(x, x[order]).columns[order].tolist() == list(range(6))


@pytest.mark.parametrize("few", [1 << 22, 0])
@pytest.mark.parametrize("turned", [False, True])
def test_points_with_rejection_and_numbers_of_pairs(few: int, turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEW_OPERATIONS", few)
    x, y = points_of("whole", 4, 2, 1), points_of("whole", 5, 2, 2)
    cost = cdist(x, y, "sqeuclidean")
    x, y = (y, x) if turned else (x, y)
    for pairs in range(1, 5):
        found = assign(x, y, n_pairs=pairs)
        assert (found.columns >= 0).sum() == pairs
        assert found.objective == best_of(cost, pairs)
    for rejection in (0.0, 2.0, 5.0, np.inf):
        best = min(best_of(cost, k) + (4 - k and rejection * (4 - k)) for k in range(5))
        found = assign(x, y, rejection_cost=rejection)
        assert found.objective == best
        assert found.bound == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give points x and y, or cost=, or similarity="),
        ({"x": [[0.0]]}, "give points"),
        ({"x": [[0.0]], "y": [[0.0]], "cost": [[0.0]]}, "give points"),
        ({"cost": [[0.0]], "similarity": [[0.0]]}, "give points"),
        ({"cost": [1.0, 2.0]}, r"cost is a matrix with at least one row and column, got shape \(2,\)"),
        ({"cost": np.zeros((0, 3))}, r"got shape \(0, 3\)"),
        ({"cost": [["a"]]}, "cost holds numbers, got <U1"),
        ({"cost": [[1, 2, np.nan], [np.inf, 1, 1]]}, r"cost\[0, 2\] is nan: only finite numbers can be assigned"),
        ({"cost": [[1, 2], [3, -np.inf]]}, r"cost\[1, 1\] is -inf"),
        ({"similarity": [[1, 2], [np.inf, -np.inf]]}, r"similarity\[1, 0\] is inf"),
        ({"x": [[np.inf, 0]], "y": [[0, 0]]}, r"x\[0, 0\] is inf"),
        ({"x": [[0, 0]], "y": [[0]]}, "points of 2 and 1 coordinates"),
        ({"cost": [[1.0]], "rejection_cost": 1.0, "n_pairs": 1}, "give one of them"),
        ({"cost": [[1.0]], "rejection_cost": np.nan}, "rejection_cost=nan: must be a number"),
        ({"x": [[1.0]], "y": [[1.0]], "rejection_cost": -1.0}, "rejection_cost=-1.0: no squared distance is below 0"),
        ({"cost": np.zeros((3, 2)), "n_pairs": 3}, r"n_pairs=3: must be in 1\.\.2"),
        ({"cost": [[np.inf, 1], [np.inf, 2]]}, "every assignment has a forbidden pair: allow more pairs, or give n_pa"),
        ({"cost": [[np.inf, 1], [np.inf, 2]], "n_pairs": 2}, "every assignment has a forbidden pair"),
        ({"similarity": np.full((2, 2), -np.inf), "n_pairs": 1}, "every assignment has a forbidden pair"),
    ],
)
def test_impossible_input(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        assign(**arguments)  # type: ignore[arg-type]


def test_fewer_pairs_where_others_are_forbidden() -> None:
    assert assign(cost=[[np.inf, 1], [np.inf, 2]], n_pairs=1).columns.tolist() == [1, -1]
    assert assign(cost=[[np.inf, 1], [np.inf, 2]], rejection_cost=5).columns.tolist() == [1, -1]


@pytest.mark.parametrize(
    "bad",
    [
        [1, 2, 3],
        np.zeros((2, 2, 2)),
        np.diag([np.nan, 1, 1]),
        np.diag([1, -np.inf, 1]),
        np.eye(3).astype(str),
        np.zeros((2, 2), complex),
        [[1, 2], [3]],
        None,
    ],
)
@pytest.mark.parametrize("maximize", [False, True])
def test_what_scipy_refuses_is_refused_in_its_words(bad: object, maximize: bool) -> None:
    if maximize and isinstance(bad, np.ndarray) and bad.dtype == np.float64 and np.isneginf(bad).any():
        bad = -bad
    with pytest.raises((ValueError, TypeError)) as expected:
        scipy.optimize.linear_sum_assignment(bad, maximize)
    with pytest.raises(expected.type) as found:
        linear_sum_assignment(bad, maximize)  # type: ignore[arg-type]
    assert str(found.value) == str(expected.value)


def test_empty_bool_and_list_input_as_scipy() -> None:
    for matrix in (np.empty((0, 0)), np.empty((2, 0)), np.empty((0, 3)), np.eye(3, dtype=bool), [[1, 2], [3, 5]]):
        for mine, theirs in zip(
            linear_sum_assignment(matrix), scipy.optimize.linear_sum_assignment(matrix), strict=True
        ):
            assert mine.dtype == theirs.dtype and mine.tolist() == theirs.tolist()


@given(kind=st.sampled_from(["uniform", "geometric"]), n=st.integers(1, 12), m=st.integers(1, 12), seed=seeds)
def test_where_one_assignment_is_best_it_is_scipys(kind: str, n: int, m: int, seed: int) -> None:
    cost = family(kind, n, m, seed) + np.random.default_rng(seed).random((n, m))
    for maximize in (False, True):
        expected = scipy.optimize.linear_sum_assignment(cost, maximize=maximize)
        for mine, theirs in zip(linear_sum_assignment(cost, maximize=maximize), expected, strict=True):
            assert mine.tolist() == theirs.tolist()


@pytest.mark.parametrize("lists", [False, True])
def test_a_time_limit_leaves_a_complete_assignment_and_an_honest_bound(
    lists: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = family("machine", 120, 130, 0)
    best = assign(cost=cost).objective
    monkeypatch.setattr(module, "DENSE_ENTRIES", 0)
    found = assign(cost=cost.astype(np.float32 if lists else np.float64), time_limit_s=0.0)
    assert found.stopped == "time limit"
    assert len(set(found.columns.tolist())) == 120 and found.columns.min() >= 0
    assert found.bound <= best <= found.objective and (lists or best < found.objective)
    assert cost[np.arange(120), found.columns].sum() == found.objective
    x, y = points_of("normal", 300, 4, 0), points_of("normal", 310, 4, 1)
    monkeypatch.setattr(module, "FEW_OPERATIONS", 0)
    hurried = assign(x.astype(np.float32), y.astype(np.float32), time_limit_s=0.0)
    assert hurried.stopped == "time limit" and hurried.bound <= assign(x, y).objective <= hurried.objective


def test_a_stopped_search_keeps_to_what_is_allowed() -> None:
    """Free rows are led to allowed pairs, whoever has to move for it."""
    cost = np.full((40, 40), np.inf)
    for k in range(40):
        cost[k, k] = cost[k, k - 1] = 1.0 + k % 3
    found = assign(cost=cost, time_limit_s=0.0)
    assert np.isfinite(found.objective) and sorted(found.columns.tolist()) == list(range(40))
    cost[5] = np.inf
    with pytest.raises(UserError, match="forbidden pair"):
        assign(cost=cost, time_limit_s=0.0)


def test_seconds_are_those_of_the_call() -> None:
    started = time.monotonic()
    seconds = assign(cost=np.eye(3)).seconds
    assert 0 < seconds <= time.monotonic() - started


def test_nothing_of_saes_is_loaded() -> None:
    heavy = ("torch", "pydantic", "hydra", "pandas", "matplotlib", "jaxtyping")
    parts = ("saes", "matching", "options", "keys", "metrics", "evaluation", "language_model")
    script = f"""
import sys
import numpy as np
from sae_match.assign import assign, linear_sum_assignment
assign(cost=np.eye(3)); linear_sum_assignment(np.eye(3)); assign(np.eye(3), np.eye(3))
print([name for name in {heavy} if name in sys.modules], [n for n in {parts} if "sae_match." + n in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[] []\n"


def test_the_examples_of_the_documentation(repository: Path) -> None:
    page = repository / "tests" / "benchmarks" / "README.md"
    for result in (doctest.testmod(module), doctest.testfile(str(page), module_relative=False)):
        assert result.failed == 0 < result.attempted
    unfolded = re.sub(r"<details>.*?</details>\n*", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(unfolded.splitlines()) <= 60


def test_every_pair_is_tried_against_brute_force() -> None:
    """All 3 x 3 matrices of three costs: ties of every kind."""
    for values in itertools.product([0.0, 1.0, 3.0], repeat=9):
        cost = np.array(values).reshape(3, 3)
        rows, columns = linear_sum_assignment(cost)
        best = min(sum(cost[i, p[i]] for i in range(3)) for p in itertools.permutations(range(3)))
        assert cost[rows, columns].sum() == best
