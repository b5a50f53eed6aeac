"""Semantic transport: POT's and scipy's one-dimensional transport, planted permutations, sampling, silent features."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import ot
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from sae_match import SparseAutoencoder, UserError
from sae_match.evaluation.semantic_transport import SemanticTransport
from sae_match.matching import make_solver
from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.match import match_features
from tests.builders import permuted, random_sae

LAYERS, SINK = (3, 4), 1


def residuals(seed: int, windows: int = 10) -> Tensor:
    return 2 * torch.randn(windows, 13, 8, generator=torch.Generator().manual_seed(seed))


def pair_of(a: SparseAutoencoder, b: SparseAutoencoder, x_a: Tensor, x_b: Tensor, **more: Any) -> FeaturePair:
    fit: Any = SimpleNamespace(key="text", layer=dict(zip(LAYERS, (x_a, x_b), strict=True)).__getitem__)
    return FeaturePair(a, b, layers=LAYERS, fit=fit, batch_windows=4, **more)


@pytest.fixture
def pair() -> FeaturePair:
    x_a = residuals(3)
    return pair_of(random_sae(9, seed=1), random_sae(11, seed=2), x_a, x_a + 0.5 * residuals(4))


def projections(pair: FeaturePair, n: int) -> np.ndarray:
    """Standardized projections of layer B's counted tokens, along the directions that the seed gives."""
    x = pair.fit_streams.layer(LAYERS[1])[:, SINK:].flatten(0, 1).double().numpy()
    generator = torch.Generator().manual_seed(pair.seed)
    torch.randperm(len(x), generator=generator)
    along = x @ torch.randn(x.shape[1], n, generator=generator, dtype=torch.float64).numpy()
    return np.asarray((along - along.mean(axis=0)) / along.std(axis=0))


def activations(pair: FeaturePair) -> list[np.ndarray]:
    saes = zip((pair.a, pair.b), LAYERS, strict=True)
    return [sae.encode(pair.fit_streams.layer(at)[:, SINK:]).flatten(0, 1).double().numpy() for sae, at in saes]


def test_squared_distances_are_sliced_transport_costs(pair: FeaturePair) -> None:
    directions = 5
    problem = SemanticTransport(directions=directions, quantiles=2000).problem(pair)
    along, (f_a, f_b) = projections(pair, directions), activations(pair)
    compared = 0
    for i in np.flatnonzero(f_a.any(axis=0)):
        for j in np.flatnonzero(f_b.any(axis=0)):
            expected = ot.wasserstein_1d(
                along,
                along,
                *(np.repeat(f[:, None] / f.sum(), directions, axis=1) for f in (f_a[:, i], f_b[:, j])),
                p=2,
            )
            found = (problem.left[i] - problem.right[j]).double().square()
            assert float(found.sum()) == pytest.approx(expected.mean(), rel=0.02, abs=1e-3)
            by_direction = (problem.left[i, :-2] - problem.right[j, :-2]).double().abs().view(directions, -1)
            first = wasserstein_distance(along[:, 0], along[:, 0], f_a[:, i], f_b[:, j])
            scale = (directions / 2000) ** 0.5  # rows are divided by the root of P Q; W1 is a mean over Q
            assert float(by_direction[0].sum()) * scale == pytest.approx(first, rel=0.02, abs=1e-3)
            compared += 1
    assert compared > 30


@pytest.mark.parametrize("solver", ["certified", "greedy", "nearest", "mutual"])
def test_a_permuted_copy_is_recovered_exactly(solver: str) -> None:
    a, x = random_sae(16, seed=5), residuals(7)
    a = a.replace(b_enc=a.b_enc.masked_fill(torch.arange(16) < 2, -1e6))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(6))
    pair = pair_of(a, permuted(a, order), x, x)
    fires = (a.encode(x[:, SINK:]) > 0).any(dim=(0, 1))
    found = match_features(SemanticTransport(tokens_per_feature=7), make_solver(solver), pair)
    assert int(fires.sum()) == 14
    assert torch.equal(order[found.permutation.indices][fires], torch.arange(16)[fires])
    assert (found.confidence[fires] == 0).all()


def test_the_order_of_features_means_nothing(pair: FeaturePair) -> None:
    order = torch.randperm(11, generator=torch.Generator().manual_seed(6))
    plain = SemanticTransport().problem(pair)
    other = SemanticTransport().problem(replace(pair, b=permuted(pair.b, order)))
    assert torch.allclose(other.left, plain.left, atol=1e-6)
    assert torch.allclose(other.right, plain.right[order], atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_the_batch_size_changes_nothing(pair: FeaturePair, batch: int) -> None:
    similarity = SemanticTransport(tokens_per_feature=5)
    plain, other = (similarity.problem(one) for one in (pair, replace(pair, batch_windows=batch)))
    assert torch.allclose(plain.left, other.left, atol=1e-6) and torch.allclose(plain.right, other.right, atol=1e-6)
    again = similarity.problem(replace(pair, seed=1))
    assert not torch.allclose(plain.left, again.left, atol=1e-2)


def test_a_sample_of_tokens_estimates_all_of_them() -> None:
    x = residuals(3, windows=200)
    pair = pair_of(random_sae(9, seed=1), random_sae(9, seed=2), x, x)
    whole, part = (SemanticTransport(tokens_per_feature=m).problem(pair) for m in (5000, 200))
    fires = (pair.a.encode(x) > 0).sum(dim=(0, 1)) > 300
    assert int(fires.sum()) > 3
    off = (whole.left[fires] - part.left[fires]).square().sum(dim=1)
    assert 0 < float(off.max()) < 0.05  # in variances of the tokens


def test_features_that_never_fire_are_as_far_as_two_are_on_average() -> None:
    a, b, x = random_sae(12, seed=1), random_sae(12, seed=2), residuals(3)
    silence = torch.where(torch.arange(12) < 2, -1e6, 0.0)
    pair = pair_of(a.replace(b_enc=a.b_enc + silence), b.replace(b_enc=b.b_enc + silence), x, x)
    problem = SemanticTransport().problem(pair)
    fire_a, fire_b = ((f > 0).any(axis=0) for f in activations(pair))
    assert not fire_a[:2].any() and not fire_b[:2].any() and fire_a.sum() > 4
    known = torch.cat([problem.left[fire_a], problem.right[fire_b]]).double()
    mean_distance = torch.cdist(known, known).square().mean()  # of two drawn from all
    silent = torch.cdist(problem.left[:1].double(), known).square()
    assert float(silent.mean()) == pytest.approx(float(mean_distance), rel=1e-5)
    assert float((problem.left[0] - problem.right[0]).square().sum()) == pytest.approx(float(mean_distance), rel=1e-5)
    with pytest.raises(UserError, match="no feature of SAE B fires"):
        SemanticTransport().problem(replace(pair, b=b.replace(b_enc=b.b_enc - 1e6)))


def test_what_is_kept_has_the_rows_that_it_has_among_all(pair: FeaturePair) -> None:
    aside = torch.arange(9) == 8  # one that fires seldom changes the mean row of silent ones only
    whole, part = (SemanticTransport().problem(one) for one in (pair, replace(pair, excluded=(aside, None))))
    assert part.shape == (8, 11)
    fires = torch.from_numpy(activations(pair)[0].any(axis=0))[:8]
    assert torch.allclose(part.left[fires], whole.left[:8][fires], atol=1e-6)


def test_memory_is_that_of_rows_samples_and_sorting() -> None:
    wide, solver = SemanticTransport(), CertifiedSolver(memory_limit_gib=1)
    wide.check_memory(solver, 2**14, 2**14, 2304)  # where the similarities of all pairs alone take 1 GiB
    fewer = CertifiedSolver(memory_limit_gib=0.25)  # 3 copies of 2^15 rows of 514 numbers take 0.19 GiB
    with pytest.raises(UserError, match=r"solver=semantic_transport needs .* fewer directions"):
        wide.check_memory(fewer, 2**14, 2**14, 2304)
