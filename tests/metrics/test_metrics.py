"""Metrics against closed forms and scikit-learn; streaming against one batch; bootstrap against theory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import explained_variance_score, r2_score

from sae_match import Permutation, SparseAutoencoder, UserError
from sae_match.evaluation.rows import MetricRow
from sae_match.experiment.headline import headline
from sae_match.metrics.bootstrap import Bootstrap, Estimate, wilson
from sae_match.metrics.coactivation import ActivationCounts, CoactivationCounts
from sae_match.metrics.delta_loss import delta_loss
from sae_match.metrics.reconstruction import ReconstructionStatistics
from sae_match.metrics.weight_distance import weight_distances

ONE = Bootstrap(1, samples=20)


@given(seed=st.integers(0, 10**6), offset=st.floats(-1e4, 1e4), batch=st.integers(1, 5))
def test_reconstruction_equals_scikit_learn(seed: int, offset: float, batch: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 9, 3, generator=generator) * torch.tensor([1.0, 10.0, 0.1]) + offset
    guess = x + 0.3 * torch.randn(x.shape, generator=generator) + 0.2
    sums = ReconstructionStatistics(1, 3)
    for start in range(0, 5, batch):  # streaming in any batch size
        rows = slice(start, start + batch)
        sums.update(x[rows], guess[rows], torch.zeros(len(x[rows]), dtype=torch.int64))
    flat_x, flat_guess = x.double().reshape(-1, 3).numpy(), guess.double().reshape(-1, 3).numpy()
    kind = {"multioutput": "variance_weighted"}
    assert sums.explained_variance(ONE).value == pytest.approx(
        explained_variance_score(flat_x, flat_guess, **kind), abs=1e-7
    )
    assert sums.r2(ONE).value == pytest.approx(r2_score(flat_x, flat_guess, **kind), abs=1e-7)


def test_reconstruction_closed_forms() -> None:
    x = torch.randn(2, 50, 4)
    document = torch.tensor([0, 1])

    def scores(guess: torch.Tensor) -> tuple[float, float]:
        sums = ReconstructionStatistics(2, 4)
        sums.update(x, guess, document)
        bootstrap = Bootstrap(2, samples=10)
        return sums.explained_variance(bootstrap).value, sums.r2(bootstrap).value

    mean = x.reshape(-1, 4).mean(dim=0)
    assert scores(x) == (1.0, 1.0)
    assert scores(mean.expand_as(x)) == pytest.approx((0.0, 0.0), abs=1e-6)
    # A constant shift leaves the explained variance at 1 but costs r2; scaling by s leaves 1 - (1 - s)^2 of it.
    assert scores(x + 3.0)[0] == pytest.approx(1.0)
    assert scores(x + 3.0)[1] < 0
    assert scores(0.5 * x)[0] == pytest.approx(0.75, abs=1e-6)


def toy_counts() -> tuple[ActivationCounts, ActivationCounts, dict[str, CoactivationCounts]]:
    """Two documents of two tokens; A has three features, B has two."""
    a_active = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[0, 1, 0], [1, 1, 0]]]).bool()
    b_active = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [0, 1]]]).bool()
    document = torch.tensor([0, 1])
    a, b = ActivationCounts(2, 3), ActivationCounts(2, 2)
    a.update(a_active, document)
    b.update(b_active, document)
    together = CoactivationCounts.empty(2, torch.tensor([1, 0, -1]))
    together.update(a_active, b_active, document)
    return a, b, {"matched": together}


def test_coactivation_by_hand() -> None:
    a, b, together = toy_counts()
    bootstrap = Bootstrap(2, samples=50)
    counts = together["matched"]
    # Feature 0 fires 3 times, its partner 1 with it once; feature 1 fires 3 times, its partner 0 with it twice.
    assert a.active.tolist() == [[2, 1, 0], [1, 2, 0]]
    assert counts.together.tolist() == [[0, 1, 0], [1, 1, 0]]
    assert counts.matching_score(a, bootstrap).value == pytest.approx(3 / 6)
    assert counts.matching_score_per_feature(a, bootstrap, min_count=1).value == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert np.isnan(counts.matching_score_per_feature(a, bootstrap, min_count=4).value)
    # Either of (0, 1): 3 + 2 - 1; either of (1, 0): 3 + 2 - 2.
    assert counts.matching_iou(a, b, bootstrap).value == pytest.approx(3 / 7)
    per_feature = counts.per_feature(a)
    assert per_feature[:2].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert np.isnan(per_feature[2])
    assert a.l0(bootstrap).value == pytest.approx(6 / 4)
    assert (a.dead(), b.dead()) == (1, 0)


@given(seed=st.integers(0, 10**6))
def test_coactivation_equals_a_double_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((4, 6, 5)) < 0.4, rng.random((4, 6, 7)) < 0.4
    partners = rng.permutation(7)[:5]
    document = torch.tensor([0, 0, 1, 2])
    counts_a = ActivationCounts(3, 5)
    counts_a.update(torch.from_numpy(a), document)
    together = CoactivationCounts.empty(3, torch.from_numpy(partners))
    for w in range(4):  # window by window
        together.update(torch.from_numpy(a[w : w + 1]), torch.from_numpy(b[w : w + 1]), document[w : w + 1])
    both = sum(a[w, t, i] and b[w, t, partners[i]] for w in range(4) for t in range(6) for i in range(5))
    assert together.matching_score(counts_a, Bootstrap(3, 5)).value == pytest.approx(both / a.sum())


def test_delta_loss_leaves_position_zero_out() -> None:
    original, bootstrap = torch.zeros(5, 4), Bootstrap(4, samples=200)
    losses = torch.tensor([1.0, 2, 6, 3, 3])
    spliced = losses[:, None].expand(5, 4).clone()
    spliced[:, 0] = 100
    estimate = delta_loss(spliced, original, torch.tensor([0, 0, 1, 2, 3]), bootstrap)
    assert estimate.value == pytest.approx(3.0)
    # Document 0 has two windows, so it counts twice.
    by_hand = bootstrap.counts @ np.array([3.0, 6, 3, 3]) / (bootstrap.counts @ np.array([2.0, 1, 1, 1]))
    assert estimate.interval == pytest.approx(tuple(np.quantile(by_hand, (0.025, 0.975))))


def test_weight_distances_by_hand() -> None:
    def sae(scale: float, theta: float) -> SparseAutoencoder:
        return SparseAutoencoder(
            W_enc=torch.tensor([[1.0, 0.0], [0.0, 1.0]]) * scale,
            b_enc=torch.tensor([0.0, -2.0]),
            W_dec=torch.eye(2),
            b_dec=torch.zeros(2),
            threshold=torch.full((2,), theta),
        )

    distances = weight_distances(sae(2.0, 1.0), sae(2.0, 2.0), Permutation.identity(2))
    assert distances.W_enc.tolist() == [0.5, 0.5]  # 2 -> folded 2 and 1
    assert distances.b_enc.tolist() == [0.0, 1.0]  # -2 and -1
    assert distances.W_dec.tolist() == [0.5, 0.5]  # 1 and 2
    assert distances.decoder_cosine.tolist() == [1.0, 1.0]
    assert distances.means() == {"W_enc": 0.5, "b_enc": 0.5, "W_dec": 0.5}


def test_bootstrap_interval_of_a_mean_matches_theory() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(5.0, 2.0, size=400)
    estimate = Bootstrap(400, samples=4000, seed=3).ratio(values, np.ones(400))
    low, high = estimate.interval
    half = 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_paired_differences_are_narrower_than_unpaired_ones() -> None:
    rng = np.random.default_rng(2)
    common = rng.normal(size=50)
    bootstrap = Bootstrap(50)
    a = bootstrap.ratio(common + 0.01 * rng.normal(size=50), np.ones(50))
    b = bootstrap.ratio(common, np.ones(50))
    width = np.subtract(*(a - b).interval[::-1])
    assert width < 0.1 * np.subtract(*a.interval[::-1])
    mean = Estimate.mean([a, b])
    assert mean.value == pytest.approx((a.value + b.value) / 2)


def test_bootstrap_is_deterministic_and_needs_documents() -> None:
    assert np.array_equal(Bootstrap(5, 10, 1).counts, Bootstrap(5, 10, 1).counts)
    assert (Bootstrap(5, 10, 1).counts.sum(axis=1) == 5).all()
    with pytest.raises(UserError, match="at least one document"):
        Bootstrap(0)


def test_too_few_documents_give_no_interval() -> None:
    """With 3 documents the resample of the lowest one alone has probability 1/27, more than 2.5 %."""
    shares = np.array([0.2, 0.5, 0.9, 0.4])
    for n in (1, 2, 3):
        few = Bootstrap(n).ratio(shares[:n], np.ones(n))
        assert few.value == pytest.approx(shares[:n].mean()) and all(np.isnan(few.interval))
        row = MetricRow(0, 1, "matched", "matching_score", few.value, n, few)
        assert headline([row]) == {"matching_score": few.value}
    low, high = Bootstrap(4).ratio(shares, np.ones(4)).interval
    assert 0.2 < low < 0.5 < high < 0.9


@pytest.mark.parametrize(("same", "trials"), [(0, 22), (22, 22), (5, 10), (1, 1)])
def test_wilson_interval_is_that_of_scipy(same: int, trials: int) -> None:
    expected = binomtest(same, trials).proportion_ci(method="wilson")
    assert wilson(same / trials, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_mean_of_proportions_has_the_interval_of_all_trials() -> None:
    none, some = (Estimate(share, np.full(10, share), trials=22) for share in (0.0, 0.5))
    assert Estimate.mean([none, none]).interval == pytest.approx(wilson(0.0, 44))
    assert Estimate.mean([none, some]).interval == pytest.approx(wilson(0.25, 44))
    plain = Estimate(0.0, np.zeros(10))
    assert Estimate.mean([none, plain]).interval == (0.0, 0.0)
