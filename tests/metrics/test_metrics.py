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
from sae_match.experiment.headline import headline, summary_lines
from sae_match.metrics.bootstrap import Bootstrap, Estimate, wilson
from sae_match.metrics.built_in import (
    L0,
    R2,
    DeadFeatures,
    DecoderCosine,
    DecoderNorm,
    DeltaLoss,
    ExplainedVariance,
    MatchingIoU,
    MatchingScore,
    MatchingScorePerFeature,
    MeanTheta,
    ResidualNorm,
    SimilarDecoders,
    Unexplained,
    WeightMSE,
)
from sae_match.metrics.metric import LayerActivity, MetricRow, SplicedLosses
from sae_match.metrics.streaming import ActivationCounts, CoactivationCounts, ReconstructionStatistics
from sae_match.metrics.weight_distance import weight_distances
from sae_match.record.labels import BUILT_IN_LABELS

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
    found = sums.sums()
    assert ExplainedVariance().estimate(found, ONE).value == pytest.approx(
        explained_variance_score(flat_x, flat_guess, **kind), abs=1e-7
    )
    r2 = R2().estimate(found, ONE).value
    assert r2 == pytest.approx(r2_score(flat_x, flat_guess, **kind), abs=1e-7)
    assert Unexplained().estimate(found, ONE).value == pytest.approx(1 - r2)


def test_reconstruction_closed_forms() -> None:
    x = torch.randn(2, 50, 4)
    document = torch.tensor([0, 1])

    def scores(guess: torch.Tensor) -> tuple[float, float]:
        sums = ReconstructionStatistics(2, 4)
        sums.update(x, guess, document)
        bootstrap = Bootstrap(2, samples=10)
        found = sums.sums()
        return ExplainedVariance().estimate(found, bootstrap).value, R2().estimate(found, bootstrap).value

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
    pair = counts.of_pair(a, b, min_count=1)
    assert MatchingScore().estimate(pair, bootstrap).value == pytest.approx(3 / 6)
    per_feature_score = MatchingScorePerFeature()
    assert per_feature_score.estimate(pair, bootstrap).value == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert np.isnan(per_feature_score.estimate(counts.of_pair(a, b, min_count=4), bootstrap).value)
    # Either of (0, 1): 3 + 2 - 1; either of (1, 0): 3 + 2 - 2.
    assert MatchingIoU().estimate(pair, bootstrap).value == pytest.approx(3 / 7)
    per_feature = counts.per_feature(a)
    assert per_feature[:2].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert np.isnan(per_feature[2])


def test_layer_metrics_by_hand() -> None:
    a, b, _ = toy_counts()
    bootstrap = Bootstrap(2, samples=50)
    norms = np.array([[4.0, 1.0], [2.0, 3.0]], dtype=np.float32)
    layer, other = (
        LayerActivity(
            active=counts.active.numpy(), tokens=counts.tokens.numpy(), theta=np.array([1.0, 2.0, 6.0])[:width],
            decoder_norm=np.array([1.0, 3.0, 2.0])[:width], residual_norm=norms,
        )
        for counts, width in ((a, 3), (b, 2))
    )  # fmt: skip
    found = L0().measure(layer, bootstrap)
    assert (found.value, found.n) == (pytest.approx(6 / 4), 2)
    assert [DeadFeatures().measure(one, bootstrap)[:2] for one in (layer, other)] == [(1.0, 3), (0.0, 2)]
    assert MeanTheta().measure(layer, bootstrap)[:2] == (3.0, 3)
    assert DecoderNorm().measure(layer, bootstrap)[:2] == (2.0, 3)
    assert ResidualNorm().measure(layer, bootstrap)[:2] == (2.0, 4)  # the lower of the two middle ones


@given(seed=st.integers(0, 10**6))
def test_coactivation_equals_a_double_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((4, 6, 5)) < 0.4, rng.random((4, 6, 7)) < 0.4
    partners = rng.permutation(7)[:5]
    document = torch.tensor([0, 0, 1, 2])
    counts_a = ActivationCounts(3, 5)
    counts_a.update(torch.from_numpy(a), document)
    counts_b = ActivationCounts(3, 7)
    counts_b.update(torch.from_numpy(b), document)
    together = CoactivationCounts.empty(3, torch.from_numpy(partners))
    for w in range(4):  # window by window
        together.update(torch.from_numpy(a[w : w + 1]), torch.from_numpy(b[w : w + 1]), document[w : w + 1])
    both = sum(a[w, t, i] and b[w, t, partners[i]] for w in range(4) for t in range(6) for i in range(5))
    score = MatchingScore().estimate(together.of_pair(counts_a, counts_b, 1), Bootstrap(3, 5))
    assert score.value == pytest.approx(both / a.sum())


def test_delta_loss_leaves_position_zero_out() -> None:
    original, bootstrap = np.zeros((5, 4), dtype=np.float32), Bootstrap(4, samples=200)
    losses = np.array([1.0, 2, 6, 3, 3], dtype=np.float32)
    spliced = np.repeat(losses[:, None], 4, axis=1)
    spliced[:, 0] = 100
    estimate = DeltaLoss().estimate(SplicedLosses(spliced, original, np.array([0, 0, 1, 2, 3])), bootstrap)
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

    pair = weight_distances(sae(2.0, 1.0), sae(2.0, 2.0), Permutation.identity(2))
    assert pair.mse["W_enc"].tolist() == [0.5, 0.5]  # 2 -> folded 2 and 1
    assert pair.mse["b_enc"].tolist() == [0.0, 1.0]  # -2 and -1
    assert pair.mse["W_dec"].tolist() == [0.5, 0.5]  # 1 and 2
    assert pair.decoder_cosine.tolist() == [1.0, 1.0]
    assert [WeightMSE(group=group).value(pair) for group in ("W_enc", "b_enc", "W_dec")] == [0.5, 0.5, 0.5]
    assert (DecoderCosine().value(pair), SimilarDecoders().value(pair)) == (1.0, 1.0)
    assert [side.tolist() for side in pair.parameters("b_enc")] == [[[0.0], [-2.0]], [[0.0], [-1.0]]]
    assert [side.tolist() for side in pair.parameters("W_dec")] == [[[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]]
    assert [side.tolist() for side in pair.parameters("W_enc")] == [[[2.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]]]
    nothing = weight_distances(sae(1.0, 1.0), sae(1.0, 1.0), Permutation(torch.tensor([-1, -1]), 2))
    assert all(np.isnan(metric.value(nothing)) for metric in (WeightMSE(group="W_dec"), SimilarDecoders()))


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


def test_the_closing_lines_hold_intervals_and_what_stands_beside_a_number() -> None:
    numbers = {"matching_score": 0.45, "matching_score_low": 0.44, "matching_score_high": 0.46, "l0/sae": 30.0}
    lines = summary_lines(numbers | {"matching_score/random": 0.05}, BUILT_IN_LABELS)
    assert lines == ["matching score [probability]: 0.45 [0.44, 0.46]; random 0.05"]
    many = {f"matching_score/m{i}": i / 100 for i in range(30)}
    (line,) = [one for one in summary_lines(numbers | many, BUILT_IN_LABELS) if one.startswith("matching score")]
    assert "; m29 0.29, m28 0.28" in line and "m19 " not in line and line.endswith(", 20 more in pairs.csv")
