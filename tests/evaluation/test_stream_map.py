"""Maps between residual streams on planted maps, and against SciPy's Procrustes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from sae_match import UserError, map_sae, match
from sae_match.evaluation.children import find_children
from sae_match.evaluation.nulls import random_rotation
from sae_match.evaluation.stream_map import MapKind, fit_stream_map
from tests.builders import permuted, random_sae

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(6, 20, 8, generator=GENERATOR) * torch.arange(1, 9) + 3.0
Q = random_rotation(12, seed=1)[:8]


def test_procrustes_finds_rotation_scale_and_shift() -> None:
    y = 1.7 * X @ Q - 2.0
    found = fit_stream_map(X, y, MapKind.orthogonal)
    torch.testing.assert_close(found.there.weight, 1.7 * Q, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(X @ found.there.weight + found.there.bias, y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y @ found.back.weight + found.back.bias, X, rtol=1e-4, atol=1e-4)


def test_procrustes_is_scipys_where_nothing_fits() -> None:
    y = torch.randn(6, 20, 8, generator=GENERATOR)
    found = fit_stream_map(X, y, MapKind.orthogonal).there.weight
    a, b = (part[:, 1:].reshape(-1, 8).double().numpy() for part in (X, y))  # position 0 is a sink
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    q, total = scipy.linalg.orthogonal_procrustes(a, b)
    np.testing.assert_allclose(found.numpy(), q * total / np.square(a).sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["orthogonal", "affine"])
def test_a_carried_sae_acts_as_before_and_finds_its_twin(kind: str) -> None:
    sae, order = random_sae(), torch.randperm(24, generator=GENERATOR)
    turn = Q if kind == "orthogonal" else torch.randn(8, 12, generator=GENERATOR)
    y = X @ turn + 1.0
    mapped = map_sae(sae, X.flatten(0, 1).numpy(), y.flatten(0, 1), kind)
    torch.testing.assert_close(mapped.encode(y), sae.encode(X), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mapped(y), sae(X) @ turn + 1.0, rtol=1e-3, atol=1e-3)
    twin = permuted(mapped, order)
    assert match(mapped, twin).permutation.indices[order].tolist() == list(range(24))


def test_what_cannot_be_mapped_is_refused() -> None:
    with pytest.raises(UserError, match="orthogonal or affine"):
        map_sae(random_sae(), X, X, "none")
    with pytest.raises(UserError, match="same tokens"):
        map_sae(random_sae(), X, X[:2])
    with pytest.raises(UserError, match="do not vary together"):
        map_sae(random_sae(), X, torch.ones_like(X))


def test_unrelated_features_have_parents_by_chance_only() -> None:
    narrow, wide = random_sae(width=64, d=16, seed=1), random_sae(width=600, d=16, seed=2)
    found = find_children(narrow, wide, alpha=0.1)
    assert 0.05 < 1 - found.numbers()["without_parent"] < 0.2
    assert found.to_frame()["decoder_cosine"].min() > found.threshold
    assert found.numbers()["children_per_feature"] * 64 == len(found.to_frame())
