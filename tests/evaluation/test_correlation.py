"""Correlation matching: numpy's correlations, scipy's assignment, and a planted permutation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from sae_match import UserError
from sae_match.evaluation.controls import FiringRate
from sae_match.evaluation.correlation import ActivationCorrelation, activation_correlations
from sae_match.matching.baselines import UnbalancedTransport
from sae_match.matching.by_similarity import match_by_similarity
from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.feature_pair import FeaturePair
from tests.builders import permuted, random_sae


def residuals(seed: int) -> torch.Tensor:
    return 2 * torch.randn(10, 13, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_it_equals_numpy_and_scipy(batch: int) -> None:
    a, b = random_sae(width=20, seed=1), random_sae(width=24, seed=2)
    x_a, x_b = residuals(3), residuals(3) + 0.5 * residuals(4)
    found = activation_correlations(a, b, x_a, x_b, batch_windows=batch, sink_positions=1)
    f_a, f_b = (sae.encode(x[:, 1:]).flatten(0, 1).double().numpy() for sae, x in ((a, x_a), (b, x_b)))
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.nan_to_num(np.corrcoef(f_a.T, f_b.T)[:20, 20:])
    assert found.numpy() == pytest.approx(expected, abs=1e-5)
    matching = match_by_similarity(found)
    rows, columns = linear_sum_assignment(expected, maximize=True)
    assert matching.permutation.indices.tolist() == columns.tolist()
    assert matching.mean == pytest.approx(expected[rows, columns].mean(), abs=1e-5)
    assert matching.gap == 0.0


def test_a_part_of_the_features_gives_that_part_of_the_correlations() -> None:
    a, b, x_a, x_b = random_sae(width=20, seed=1), random_sae(width=24, seed=2), residuals(3), residuals(4)
    kept_a, kept_b = torch.tensor([0, 3, 4, 19]), torch.tensor([23, 1, 2])
    whole = activation_correlations(a, b, x_a, x_b)
    part = activation_correlations(a, b, x_a, x_b, kept_a=kept_a, kept_b=kept_b)
    assert part.numpy() == pytest.approx(whole[kept_a][:, kept_b].numpy(), abs=1e-6)
    one_side = activation_correlations(a, b, x_a, x_b, kept_b=kept_b)
    assert one_side.numpy() == pytest.approx(whole[:, kept_b].numpy(), abs=1e-6)


def test_a_planted_permutation_is_found() -> None:
    a = random_sae(width=16, seed=5)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(6))
    x = residuals(7)
    similarity = activation_correlations(a, permuted(a, order), x, x)
    fires = (a.encode(x[:, 1:]) > 0).any(dim=(0, 1))
    assert int(fires.sum()) > 8
    found = match_by_similarity(similarity).permutation
    # Feature i of A stands at the position j of B with order[j] = i; dead features correlate with nothing.
    assert (order[found.indices][fires] == torch.arange(16)[fires]).all()
    assert similarity[~fires].abs().sum() == 0


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10**6))
def test_the_sum_is_the_largest_and_proved(n: int, m: int, seed: int) -> None:
    similarity = 2 * torch.rand(n, m, generator=torch.Generator().manual_seed(seed)) - 1
    found = match_by_similarity(similarity)
    rows, columns = linear_sum_assignment(similarity.double().numpy(), maximize=True)
    best = similarity.double().numpy()[rows, columns].sum()
    own = similarity.double()[found.permutation.matched, found.permutation.indices[found.permutation.matched]].sum()
    assert len(found.permutation.matched) == min(n, m)
    assert float(own) == pytest.approx(best, abs=1e-6)
    assert found.gap == pytest.approx(0.0, abs=1e-12)


def test_matrices_that_do_not_fit_are_refused() -> None:
    similarity = ActivationCorrelation()
    with pytest.raises(UserError, match=r"correlation needs 4\.\d GiB for 32768 x 32768"):
        similarity.check_memory(CertifiedSolver(memory_limit_gib=4), 32768, 32768, 8)
    similarity.check_memory(CertifiedSolver(memory_limit_gib=5), 32768, 32768, 8)
    with pytest.raises(UserError, match=r"correlation needs 16\.\d GiB"):
        similarity.check_memory(UnbalancedTransport(memory_limit_gib=16), 32768, 32768 + 64, 8)


def test_the_frequency_control_pairs_ranks_of_firing_rates() -> None:
    a = random_sae(width=12, d=8, seed=1)
    b = permuted(a, torch.randperm(12, generator=torch.Generator().manual_seed(3)))
    x = torch.randn(20, 6, 8, generator=torch.Generator().manual_seed(4))

    class Fit:
        key = "fit"

        def layer(self, layer: int) -> torch.Tensor:
            return x

    excluded = torch.zeros(12, dtype=torch.bool)
    excluded[2] = True
    pair = FeaturePair(a, b, excluded=(excluded, None), fit=Fit())
    control = FiringRate()
    found = control.match(pair, lambda *_: pytest.fail("needs no solver")).permutation
    counts_a, counts_b = ((sae.encode(x[:, 1:]) > 0).sum(dim=(0, 1)) for sae in (a, b))
    order_a = sorted((i for i in range(12) if i != 2), key=lambda i: (-int(counts_a[i]), i))
    order_b = sorted(range(12), key=lambda j: (-int(counts_b[j]), j))
    assert control.fitted and int(found.indices[2]) == -1
    assert [int(found.indices[i]) for i in order_a] == order_b[:11]
