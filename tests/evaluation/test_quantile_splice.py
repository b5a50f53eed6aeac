"""Eq. 6 against closed cases: q = 0, q = 1, hand-computed halves, both units."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from sae_match import Permutation, SparseAutoencoder, UserError, match
from sae_match.evaluation import PairSettings, evaluate_pair
from sae_match.evaluation.splices import BoundSplice, PairActivations, SplicePair, SpliceUnits
from sae_match.evaluation.standard_splices import STANDARD, Quantiles, carried_features, carried_share, permuted_splice
from sae_match.metrics.weight_distance import weight_distances
from sae_match.saes import fold
from tests.builders import identity_sae, random_sae, splices_of_pair

UNITS = [SpliceUnits.theta, SpliceUnits.raw]


def quantile_splices(
    a: SparseAutoencoder, b: SparseAutoencoder, permutation: Permutation, units: SpliceUnits, quantiles: list[float]
) -> dict[str, BoundSplice]:
    return Quantiles(quantiles=tuple(quantiles)).bind(SplicePair(a, b, {"matched": permutation}, units))


@pytest.fixture
def residuals() -> torch.Tensor:
    return torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("units", UNITS)
def test_all_pairs_are_the_full_match_and_none_the_previous_layer(units: SpliceUnits, residuals: torch.Tensor) -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    permutation = match(a, b).permutation
    splices = quantile_splices(a, b, permutation, units, [0.0, 1.0])
    assert list(splices) == ["quantile_0", "quantile_1"]
    f_a = a.encode(residuals)
    pair = PairActivations(residuals, residuals, f_a, b.encode(residuals))
    assert torch.allclose(splices["quantile_1"](pair), permuted_splice(a, b, permutation, units)(pair), atol=1e-6)
    assert torch.allclose(splices["quantile_0"](pair), a.decode(f_a) - a.b_dec + b.b_dec, atol=1e-6)


@pytest.mark.parametrize("units", UNITS)
def test_half_of_the_pairs_by_hand(units: SpliceUnits, residuals: torch.Tensor) -> None:
    """Feature by feature in plain Python, with folded SAEs for theta units, as the paper has it."""
    a, b = random_sae(width=6, seed=3), random_sae(width=6, seed=4)
    permutation = match(a, b).permutation
    mse = weight_distances(a, b, permutation).mse["W_dec"].tolist()
    low = sorted(range(6), key=lambda i: mse[i])[:3]
    (splice,) = quantile_splices(a, b, permutation, units, [0.5]).values()
    f_a = a.encode(residuals)
    found = splice(PairActivations(residuals, residuals, f_a, f_a))
    left, right = (fold(a), fold(b)) if units is SpliceUnits.theta else (a, b)
    f = left.encode(residuals)
    expected = right.b_dec.expand(residuals.shape).clone()
    for i in range(6):
        row = right.W_dec[permutation.indices[i]] if i in low else left.W_dec[i]
        expected += f[..., i, None] * row
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_carried_sets_grow_and_have_the_right_sizes() -> None:
    a, b = random_sae(width=24, seed=1), random_sae(width=24, seed=2)
    masks = carried_features(a, b, match(a, b).permutation, [0, 0.1, 0.5, 0.7, 1])
    assert [int(mask.sum()) for mask in masks.values()] == [0, 2, 12, 17, 24]
    ordered = list(masks.values())
    assert all(bool((small <= large).all()) for small, large in pairwise(ordered))


def test_equal_mse_is_broken_by_the_feature_number() -> None:
    sae = identity_sae(4)
    masks = carried_features(sae, sae, Permutation.identity(8), [0.25])
    assert masks[0.25].tolist() == [True, True] + [False] * 6


def test_features_without_a_partner_stay_whatever_q() -> None:
    a, b = random_sae(width=6, seed=1), random_sae(width=4, seed=2)
    permutation = match(a, b).permutation
    masks = carried_features(a, b, permutation, [1.0])
    assert torch.equal(masks[1.0], permutation.indices >= 0)
    assert int(masks[1.0].sum()) == 4
    f = torch.ones(6)
    alone = permutation.indices < 0
    splice = carried_share(a, b, permutation, masks[1.0], SpliceUnits.raw)
    expected = b.decode(permutation.apply(f)) + a.W_dec[alone].sum(dim=0)
    assert torch.allclose(splice(PairActivations(f, f, f, f)), expected, atol=1e-6)


def test_rows_of_a_pair(residuals: torch.Tensor) -> None:
    a, b = random_sae(seed=1), random_sae(seed=2)
    permutation = match(a, b).permutation
    plain = evaluate_pair(a, b, permutation, residuals, residuals)
    settings = PairSettings(splices=(*STANDARD, Quantiles(quantiles=(0, 0.5, 1))))
    more = evaluate_pair(a, b, permutation, residuals, residuals, settings=settings)
    names = {"quantile_0", "quantile_0.5", "quantile_1"}
    added = [row for row in more.rows if row.variant in names]
    assert {(row.variant, row.metric) for row in added} == {
        (n, m) for n in names for m in ("explained_variance", "r2", "fvu")
    }
    assert len(more.rows) == len(plain.rows) + len(added)
    values = {(row.variant, row.metric): row for row in more.rows}
    full, ours = values["quantile_1", "explained_variance"], values["encode_permute_decode", "explained_variance"]
    assert full.value == pytest.approx(ours.value, abs=1e-6)
    none, previous = values["quantile_0", "explained_variance"], values["encode_decode_previous", "explained_variance"]
    assert none.value == pytest.approx(previous.value, abs=1e-6)  # another bias moves no variance
    assert full.estimate is not None and full.estimate.replicates.shape == (1000,)


def test_impossible_requests_are_refused() -> None:
    a = random_sae(seed=1)
    identity = Permutation.identity(a.width)
    with pytest.raises(UserError, match="variant matched"):
        splices_of_pair(a, a, {"random": identity}, SpliceUnits.raw, [0.5])
    for wrong in ((1.5,), (0.5, 0.5)):
        with pytest.raises(ValidationError):
            Quantiles(quantiles=wrong)
