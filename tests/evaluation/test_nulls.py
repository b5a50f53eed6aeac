"""The rotated null: what it keeps, what it destroys, and the threshold that follows from it."""

from __future__ import annotations

import math

import pytest
import torch

from sae_match import SparseAutoencoder, UserError, match
from sae_match.evaluation.correlation import ActivationCorrelation
from sae_match.evaluation.nulls import above_null, null_rows, null_threshold, random_rotation, rotated
from sae_match.evaluation.stability import AbsoluteDecoderCosine
from sae_match.matching import Matching, Permutation, make_solver
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.match import match_features
from sae_match.matching.similarity import Comparison, WeightDistance
from sae_match.matching.solution import Solver
from tests.builders import permuted, random_sae

WEIGHTS = WeightDistance(metric="both")
EXACT = make_solver("certified")


def given(confidence: list[float]) -> Matching:
    """A matching with these confidences."""
    return Matching(Permutation.identity(len(confidence)), 0.0, seconds=0.0, confidence=torch.tensor(confidence))


def asked(similarity: Comparison, solver: Solver, pair: FeaturePair, alpha: float) -> tuple[float, float]:
    """The null's threshold, and the share of features above it."""
    threshold = null_threshold(similarity, solver, pair, alpha)
    return threshold, above_null(match_features(similarity, solver, pair).confidence, threshold)


def test_a_rotation_keeps_norms_and_inner_products_and_moves_every_direction() -> None:
    sae = random_sae(width=40, d=16, seed=1)
    turned = rotated(sae, seed=3)
    assert torch.allclose(turned.W_dec @ turned.W_dec.T, sae.W_dec @ sae.W_dec.T, atol=1e-6)
    assert torch.allclose(turned.W_enc.T @ turned.W_enc, sae.W_enc.T @ sae.W_enc, atol=1e-6)
    assert torch.allclose(turned.W_dec @ turned.W_enc, sae.W_dec @ sae.W_enc, atol=1e-6)
    assert torch.equal(turned.threshold, sae.threshold) and torch.equal(turned.b_enc, sae.b_enc)
    assert float((turned.W_dec * sae.W_dec).sum(dim=1).max()) < 0.9
    # Rotated inputs make it do what the SAE does.
    x, q = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)), random_rotation(16, 3)
    assert torch.allclose(turned.encode(x @ q), sae.encode(x), atol=1e-5)
    assert rotated(sae, seed=3).content_hash == turned.content_hash
    assert rotated(sae, seed=4).content_hash != turned.content_hash != sae.content_hash


def test_rotations_are_spread_evenly() -> None:
    """Each entry has mean 0 and variance 1 / d; a QR without the sign fix has a first entry of one sign."""
    entries = torch.stack([random_rotation(4, seed) for seed in range(2000)])
    assert torch.allclose(entries @ entries.mT, torch.eye(4).expand(2000, 4, 4), atol=1e-5)
    assert float(entries.mean(dim=0).abs().max()) < 5 * 0.5 / math.sqrt(2000)
    assert torch.allclose(entries.square().mean(dim=0), torch.full((4, 4), 0.25), atol=0.03)
    assert abs(float((torch.det(entries) > 0).float().mean()) - 0.5) < 0.05


@pytest.mark.parametrize(
    ("confidence", "alpha", "threshold"),
    [
        ([0.1, 0.4, 0.2, 0.3], 0.25, 0.3),  # one of four may exceed it
        ([0.1, 0.4, 0.2, 0.3], 0.2, 0.4),  # none may
        ([0.1, 0.4, 0.4, 0.3], 0.25, 0.4),  # of two equal ones none may
        ([math.nan, 0.4, math.nan, 0.3], 0.25, 0.3),
        ([math.nan, 0.4, math.nan, math.nan], 0.5, -math.inf),  # half of them is not even matched
    ],
)
def test_the_threshold_is_exceeded_by_at_most_that_share(
    confidence: list[float], alpha: float, threshold: float
) -> None:
    pair = FeaturePair(random_sae(width=4), random_sae(width=4, seed=1))
    found = null_threshold(WEIGHTS, EXACT, pair, alpha, match=lambda *_: given(confidence))
    assert found == pytest.approx(threshold)
    assert above_null(torch.tensor(confidence), found) <= alpha


def test_a_feature_without_a_partner_is_not_above() -> None:
    assert above_null(torch.tensor([0.5, math.nan, 0.2, 0.2]), 0.2) == 0.25
    assert above_null(torch.tensor([0.5, math.nan, 0.2, 0.2]), -math.inf) == 0.75


def test_rows_are_of_every_null() -> None:
    found = {"matched": torch.tensor([0.5, math.nan, 0.2, 0.9]), "greedy": torch.zeros(4)}
    rows = null_rows(found, {"matched": torch.tensor([0.3, 0.4, 0.1, 0.5])}, (3, 4), 0.25)
    assert [(row.layer, row.layer_to, row.variant, row.metric, row.n) for row in rows] == [
        (3, 4, "matched", "null_threshold", 4),
        (3, 4, "matched", "above_null", 4),
    ]
    assert [row.value for row in rows] == [pytest.approx(0.4), 0.5]


@pytest.mark.parametrize("solver", ["certified", "greedy", "nearest", "mutual"])
@pytest.mark.parametrize("similarity", [WEIGHTS, AbsoluteDecoderCosine()], ids=lambda one: one.name)
def test_the_same_features_are_all_above(similarity: Comparison, solver: str) -> None:
    a = random_sae(width=60, d=24)
    b = permuted(a, torch.randperm(60, generator=torch.Generator().manual_seed(2)))
    assert asked(similarity, make_solver(solver), FeaturePair(a, b), alpha=0.05)[1] == 1.0


def test_unrelated_features_are_above_as_often_as_alpha_says() -> None:
    """A second random dictionary is one more draw from the null; alpha = 0.1 of 300 features is 30 +- 5.2."""
    alpha, n = 0.1, 300
    a, b = random_sae(width=n, d=32, seed=1), random_sae(width=n, d=32, seed=2)
    _, above = asked(AbsoluteDecoderCosine(), EXACT, FeaturePair(a, b), alpha)
    # Both the threshold and the count vary.
    assert abs(above - alpha) < 4 * math.sqrt(2 * alpha * (1 - alpha) / n)


def test_excluded_features_stay_excluded() -> None:
    gone = torch.arange(24) < 4
    seen: list[FeaturePair] = []

    def matching(similarity: Comparison, solver: Solver, pair: FeaturePair) -> Matching:
        seen.append(pair)
        return match_features(similarity, solver, pair)

    pair = FeaturePair(random_sae(), random_sae(seed=1), excluded=(None, gone))
    null_threshold(WEIGHTS, EXACT, pair, 0.05, seed=3, match=matching)
    (turned,) = seen
    assert turned.excluded == pair.excluded and turned.a is pair.a
    assert turned.b.content_hash == rotated(pair.b, 3).content_hash


class Streams:
    """Residual streams of two layers, alike."""

    key = "streams"

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def layer(self, layer: int) -> torch.Tensor:
        return self.x


@pytest.mark.parametrize("bias", [0.0, -100.0, 100.0], ids=["some fire", "none fires", "all fire"])
def test_a_similarity_of_activations_is_fitted_on_the_rotated_ones(bias: float) -> None:
    x = torch.randn(20, 12, 16, generator=torch.Generator().manual_seed(0))
    a = random_sae(width=24, d=16, seed=1)
    a = a.replace(b_enc=torch.full((24,), bias), threshold=torch.full((24,), 0.1))
    b = permuted(a, torch.arange(23, -1, -1))
    pair = FeaturePair(a, b, fit=Streams(x))
    threshold, above = asked(ActivationCorrelation(), EXACT, pair, 0.05)
    if bias < 0:  # nothing correlates with anything
        assert (threshold, above) == (0.0, 0.0)
    else:
        assert 0.1 < threshold < 1 and above == 1.0


def drifted(sae: SparseAutoencoder, seed: int) -> SparseAutoencoder:
    """As after a training that moved each decoder row by its length."""
    step = torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(seed)) / sae.d_model**0.5
    return sae.replace(W_dec=torch.nn.functional.normalize(sae.W_dec + step, dim=1))


def test_match_warns_of_one_initialization(recwarn: pytest.WarningsRecorder) -> None:
    start = random_sae(width=200, d=16, seed=1)
    with pytest.warns(UserWarning, match="feature i resembles feature i of the other SAE") as told:
        match(drifted(start, 2), drifted(start, 3), metric="decoder", folding="none")
    assert len(told) == 1
    match(start, random_sae(width=150, d=16, seed=2))
    assert not recwarn.list
    with pytest.raises(UserError, match="different residual streams"):
        match(start, random_sae(width=200, d=8))
