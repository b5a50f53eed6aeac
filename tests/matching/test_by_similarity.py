"""Matching by a given matrix of similarities: scipy, brute force, ties, dead features, its own duals, and memory."""

from __future__ import annotations

import itertools
import logging
import tracemalloc
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae_match import UserError
from sae_match.assignment import given as given_module
from sae_match.assignment.given import given_costs, solve_given
from sae_match.assignment.lazy import LazyAssignment
from sae_match.assignment.proof import exact_duals, verified
from sae_match.assignment.rows import GivenRows
from sae_match.assignment.workspace import Stopped
from sae_match.matching.by_similarity import SimilarityMatching, match_by_similarity, required_bytes

KINDS = ["random", "tied", "signs", "duplicates", "dead", "sparse", "tiny", "constants"]
LOGGER = "sae_match.matching.by_similarity"

seeds = st.integers(0, 10**6)


def similarity_of(kind: str, n: int, m: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    values = 2 * torch.rand(n, m, generator=g) - 1
    if kind == "tied":
        values = (2 * values).round() / 2
    elif kind == "signs":
        values = values.sign()
    elif kind == "duplicates":
        values = values[torch.randint(max(1, n // 3), (n,), generator=g)]
        values = values[:, torch.randint(max(1, m // 3), (m,), generator=g)]
    elif kind in ("dead", "sparse"):
        if kind == "sparse":  # few positive pairs: many rows would rather have a dead column
            values = torch.where(values > 0.6, values, (values.clamp(max=0) * 4).round() / 64)
        values[torch.rand(n, generator=g) < 0.4] = 0
        values[:, torch.rand(m, generator=g) < 0.4] = 0
    elif kind == "tiny":
        values = values * 10.0 ** -torch.randint(0, 45, (n, 1), generator=g)
    elif kind == "constants":
        values = torch.where(torch.rand(n, 1, generator=g) < 0.5, values[:, :1], values).contiguous()
    return values.float()


def best_sum(similarity: Tensor) -> float:
    values = similarity.double().numpy()
    rows, columns = linear_sum_assignment(values, maximize=True)
    return float(values[rows, columns].sum())


def own_sum(similarity: Tensor, found: SimilarityMatching) -> float:
    matched = found.permutation.matched
    return float(similarity.double()[matched, found.permutation.indices[matched]].sum())


def check(similarity: Tensor) -> SimilarityMatching:
    found = match_by_similarity(similarity)
    pairs = min(similarity.shape)
    assert len(found.permutation.matched) == pairs
    assert found.permutation.n_b == similarity.shape[1]
    assert own_sum(similarity, found) == pytest.approx(best_sum(similarity), abs=1e-11 * pairs)
    assert found.mean == pytest.approx(own_sum(similarity, found) / pairs, abs=1e-12)
    assert found.gap == 0.0
    return found


def least_best(similarity: Tensor) -> list[int]:
    """The lexicographically least optimum by trying all; no more rows than columns."""
    values, best = similarity.double().numpy(), best_sum(similarity)
    n, m = values.shape
    for columns in itertools.permutations(range(m), n):
        if sum(values[i, j] for i, j in enumerate(columns)) >= best - 1e-9:
            return list(columns)
    raise AssertionError("the optimum was not among the assignments")


@settings(max_examples=300)
@given(kind=st.sampled_from(KINDS), n=st.integers(1, 24), m=st.integers(1, 24), seed=seeds)
def test_the_sum_is_the_largest_and_proved(kind: str, n: int, m: int, seed: int) -> None:
    similarity = similarity_of(kind, n, m, seed)
    before = similarity.clone()
    for many in (1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(given_module, "MANY_ALIKE", many)
            check(similarity)
    assert torch.equal(similarity, before)


@settings(max_examples=300)
@given(kind=st.sampled_from(["tied", "signs", "duplicates", "dead", "sparse", "constants"]), n=st.integers(1, 5),
       extra=st.integers(0, 2), many=st.sampled_from([1, 1000]), seed=seeds)  # fmt: skip
def test_ties_go_to_the_least_permutation(kind: str, n: int, extra: int, many: int, seed: int) -> None:
    similarity = similarity_of(kind, n, n + extra, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(given_module, "MANY_ALIKE", many)
        assert match_by_similarity(similarity).permutation.indices.tolist() == least_best(similarity)
        back = match_by_similarity(similarity.T)  # A is the wider side, or as wide
    if extra:
        assert back.permutation.inverse().indices.tolist() == least_best(similarity)


@settings(max_examples=60)
@given(kind=st.sampled_from(KINDS), n=st.integers(1, 40), m=st.integers(1, 40), seed=seeds, block=st.integers(1, 9))
def test_one_answer_for_any_block_size_thread_count_and_treatment_of_dead_columns(
    kind: str, n: int, m: int, seed: int, block: int
) -> None:
    similarity = similarity_of(kind, n, m, seed)
    expected = match_by_similarity(similarity)
    threads = torch.get_num_threads()
    try:
        for count, many in [(1, 1), (2, 1), (2, 1000)]:
            torch.set_num_threads(count)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(given_module, "MANY_ALIKE", many)
                found = match_by_similarity(similarity, block_rows=block)
            assert torch.equal(found.permutation.indices, expected.permutation.indices)
            assert found.mean == expected.mean
            assert found.gap == expected.gap == 0.0
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(300, 300), (200, 330), (330, 200)])
def test_larger_matrices_of_every_kind(kind: str, n: int, m: int) -> None:
    found = check(similarity_of(kind, n, m, seed=n))
    again = match_by_similarity(similarity_of(kind, n, m, seed=n), block_rows=17)
    assert torch.equal(found.permutation.indices, again.permutation.indices)


@pytest.mark.parametrize("hope", [0.0, 0.01])
def test_more_rows_want_a_dead_column_than_there_are(hope: float) -> None:
    """Thirty rows have a negative similarity with all but one column, and only twenty dead columns can take them in."""
    g = torch.Generator().manual_seed(4)
    similarity = -torch.rand(40, 40, generator=g)
    similarity[:10, :10] = similarity[:10, :10].abs()
    similarity[:, 20:] = 0
    similarity[10:, 0] = hope
    found = check(similarity)
    assert int((found.permutation.indices >= 20).sum()) == 20
    assert found.mean < 0.25


@pytest.mark.parametrize(
    ("values", "indices", "mean"),
    [
        ([[0.5]], [0], 0.5),
        ([[-1.0]], [0], -1.0),
        ([[0.0, 0.0], [0.0, 0.0]], [0, 1], 0.0),
        ([[1.0, -1.0], [1.0, 1.0]], [0, 1], 1.0),
        ([[-1.0, 1.0], [1.0, -1.0]], [1, 0], 1.0),
        ([[0.25, 0.25, 0.25]], [0], 0.25),
        ([[0.25], [0.5], [0.5]], [-1, 0, -1], 0.5),
        ([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5]], [0, 1], 0.25),
        ([[0.0, 0.0, 0.0], [0.5, 0.0, -0.5]], [1, 0], 0.25),
        # Two rows alike, one live and one dead column: the least permutation, whichever of them is dead.
        ([[0.5, 0.0], [0.5, 0.0]], [0, 1], 0.25),
        ([[0.0, 0.5], [0.0, 0.5]], [0, 1], 0.25),
        ([[0.0, 0.5, 0.0], [0.0, 0.5, 0.0], [0.0, 0.5, 0.0]], [0, 1, 2], 0.5 / 3),
    ],
)
@pytest.mark.parametrize("many", [1, 1000])
def test_small_matrices_by_hand(
    values: list[list[float]], indices: list[int], mean: float, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given_module, "MANY_ALIKE", many)
    found = match_by_similarity(torch.tensor(values))
    assert found.permutation.indices.tolist() == indices
    assert found.mean == mean
    assert found.gap == 0.0


@pytest.mark.parametrize("kind", ["random", "dead", "tied"])
def test_duals_are_feasible_for_every_pair_in_float64(kind: str) -> None:
    similarity = similarity_of(kind, 150, 190, seed=7).numpy()
    live = np.flatnonzero(np.ptp(similarity, axis=1) > 0)
    costs, row_cost = given_costs(similarity, live)
    lazy = LazyAssignment(costs, row_cost, GivenRows(similarity, live, 64, 2))
    assert lazy.run() is None
    duals = exact_duals(lazy)
    dual, price = duals / costs.unit, lazy.prices.price / costs.unit
    reduced = 1.0 - 2.0 * similarity[live].astype(np.float64) - dual[:, None] - price[None, :]
    assert reduced.min() >= -1e-12
    assert np.abs(reduced[np.arange(len(live)), lazy.held.partner]).max() <= 1e-12
    # One grid step too high is found wherever it is.
    for row in (0, len(live) - 1):
        wrong = duals.copy()
        wrong[row] += 1
        assert np.flatnonzero(verified(lazy, wrong) != wrong).tolist() == [row]


@pytest.mark.parametrize("kind", ["random", "tied", "dead", "sparse"])
def test_a_search_that_runs_out_of_memory_says_how_far_it_may_be_off(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(self: object) -> None:
        raise Stopped("test")

    similarity = similarity_of(kind, 120, 130, seed=2)
    for phase in ("auction_rounds", "prepare"):
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, LOGGER):
            patch.setattr(LazyAssignment, phase, stop)
            found = match_by_similarity(similarity)
        assert "stopped early (test)" in caplog.text
        assert len(set(found.permutation.indices.tolist())) == 120
        assert found.mean == pytest.approx(own_sum(similarity, found) / 120)
        assert found.gap > 0 or kind == "tied"  # there, any answer may be the best
        assert found.mean + found.gap >= best_sum(similarity) / 120 - 1e-12


@pytest.mark.parametrize("scale", [2.0**-140, 1e-12, 3.0, 1e20, 1e38])
def test_any_magnitude_has_the_same_answer(scale: float) -> None:
    similarity = similarity_of("random", 30, 33, seed=1)
    expected = match_by_similarity((similarity * 2**20).round() / 2**20)
    found = match_by_similarity(((similarity * 2**20).round() / 2**20 * scale).float())
    assert found.gap == 0
    if scale > 1e-20:
        assert torch.equal(found.permutation.indices, expected.permutation.indices)


def rational_best(similarity: Tensor) -> tuple[Fraction, list[int]]:
    """Largest sum and the least assignment that has it, by trying all; no more rows than columns."""
    values = [[Fraction(x) for x in row] for row in similarity.tolist()]
    sums = {
        columns: sum((values[i][j] for i, j in enumerate(columns)), Fraction(0))
        for columns in itertools.permutations(range(similarity.shape[1]), similarity.shape[0])
    }
    best = max(sums.values())
    return best, list(min(columns for columns, value in sums.items() if value == best))


@settings(max_examples=200)
@given(n=st.integers(1, 5), extra=st.integers(0, 2), decades=st.sampled_from([6, 20, 60]), seed=seeds,
       kind=st.sampled_from(KINDS), axis=st.integers(0, 1))  # fmt: skip
def test_the_least_optimum_over_many_orders_of_magnitude(
    n: int, extra: int, decades: float, seed: int, kind: str, axis: int
) -> None:
    similarity = similarity_of(kind, n, n + extra, seed)
    g = torch.Generator().manual_seed(seed)
    exponents = (torch.rand(similarity.shape[axis], generator=g) - 0.5) * decades * 3.32
    similarity *= torch.exp2(exponents.round())[:, None] if axis == 0 else torch.exp2(exponents.round())
    found = match_by_similarity(similarity)
    best, indices = rational_best(similarity)
    assert found.gap == 0
    chosen = sum((Fraction(x) for x in similarity[range(n), found.permutation.indices].tolist()), Fraction(0))
    if given_module.is_wide(similarity.numpy()):
        assert chosen == best
        assert found.permutation.indices.tolist() == indices
    assert float(best - chosen) <= 1e-12 * float(similarity.abs().max())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_refused(bad: float) -> None:
    similarity = torch.zeros(4, 5)
    similarity[2, 3] = bad
    with pytest.raises(UserError, match="must be finite numbers"):
        match_by_similarity(similarity)


def test_other_types_and_empty_sides_are_refused() -> None:
    with pytest.raises(UserError, match=r"float32, got torch\.float64"):
        match_by_similarity(torch.zeros(2, 2, dtype=torch.float64))
    for shape in [(0, 3), (3, 0)]:
        with pytest.raises(UserError, match="nothing to match"):
            match_by_similarity(torch.zeros(shape))


def peak_bytes(similarity: npt.NDArray[np.float32]) -> int:
    """What NumPy allocates beside the matrix, at most."""
    tracemalloc.start()
    try:
        solve_given(similarity, 64, 1, 10**9)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["random", "dead"])
def test_nothing_of_the_matrix_size_is_allocated_beside_it(kind: str) -> None:
    similarity = similarity_of(kind, 4000, 4000, seed=0).numpy()
    solve_given(similarity[:50], 64, 1, 10**9)  # compile
    beside = peak_bytes(similarity)
    assert beside < similarity.nbytes // 2  # a quarter of a float64 matrix
    assert beside + similarity.nbytes < required_bytes(4000, 4000)


def test_required_memory_is_that_of_the_matrix_and_lists() -> None:
    matrix = 4 * 16384**2
    assert matrix < required_bytes(16384, 16384) < 1.3 * matrix
    assert required_bytes(8192, 16384) < required_bytes(16384, 8192)  # the wider side as rows costs a copy
