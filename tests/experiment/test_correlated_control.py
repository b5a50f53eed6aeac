"""The correlation control of one pair: widths, features set aside, and the side that is made the rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae_match import SparseAutoencoder
from sae_match.evaluation.controls import ControlMatching, Matcher
from sae_match.evaluation.correlation import ActivationCorrelation, activation_correlations
from sae_match.experiment.matching_cache import cached_matching
from sae_match.matching import by_similarity
from sae_match.matching.certified import CertifiedSolver
from sae_match.matching.feature_pair import FeaturePair
from sae_match.store import Store
from tests.builders import random_sae

LAYERS = (3, 4)


CONTROL = Matcher(name="correlation", similarity=ActivationCorrelation(), solver=CertifiedSolver())


def pair_of(a: SparseAutoencoder, b: SparseAutoencoder, layers: dict[int, Tensor]) -> FeaturePair:
    fit: Any = SimpleNamespace(key="text", layer=layers.__getitem__)
    return FeaturePair(a, b, layers=LAYERS, fit=fit, batch_windows=4)


def matched_by(pair: FeaturePair, cache: Path) -> ControlMatching:
    return CONTROL.match(pair, lambda own, similarity, solver: cached_matching(Store(cache), similarity, solver, own))


@pytest.mark.parametrize(("width_a", "width_b"), [(20, 24), (24, 20), (22, 22)])
@pytest.mark.parametrize("aside", ["none", "a", "b", "both"])
def test_it_is_the_best_matching_of_what_is_kept(width_a: int, width_b: int, aside: str, tmp_path: Path) -> None:
    a, b = random_sae(width=width_a, seed=1), random_sae(width=width_b, seed=2)
    generator = torch.Generator().manual_seed(3)
    x_a = 2 * torch.randn(10, 13, 8, generator=generator)
    layers = {3: x_a, 4: x_a + 0.5 * torch.randn(10, 13, 8, generator=generator)}
    gone_a, gone_b = torch.zeros(width_a, dtype=torch.bool), torch.zeros(width_b, dtype=torch.bool)
    gone_a[torch.tensor([0, 5, 7])] = aside in ("a", "both")
    gone_b[torch.tensor([1, 19])] = aside in ("b", "both")
    excluded = gone_a if gone_a.any() else None, gone_b if gone_b.any() else None
    found = matched_by(replace(pair_of(a, b, layers), excluded=excluded), tmp_path)
    similarity = activation_correlations(a, b, layers[3], layers[4]).double().numpy()
    similarity[gone_a.numpy()] = similarity[:, gone_b.numpy()] = -9.0
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    best = np.sort(similarity[rows, columns])[::-1]
    pairs = min(width_a - int(gone_a.sum()), width_b - int(gone_b.sum()))
    matched = found.permutation.matched
    partners = found.permutation.indices[matched]
    assert (found.permutation.n_a, found.permutation.n_b) == (width_a, width_b)
    assert len(matched) == pairs
    assert not gone_a[matched].any() and not gone_b[partners].any()
    assert similarity[matched.numpy(), partners.numpy()].sum() == pytest.approx(best[:pairs].sum(), abs=1e-5)
    assert found.values["fit_correlation"] == pytest.approx(best[:pairs].mean(), abs=1e-6)
    assert found.values["gap"] == 0.0


@pytest.mark.parametrize(("gap", "solved"), [(0.0, 1), (0.1, 2)])
def test_only_a_proved_matching_is_kept(
    gap: float, solved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    match_by_similarity = by_similarity.match_by_similarity

    def counting(similarity: torch.Tensor, **options: Any) -> Any:
        calls.append(1)
        return match_by_similarity(similarity, **options)._replace(gap=gap)

    monkeypatch.setattr(by_similarity, "match_by_similarity", counting)
    layers = {layer: torch.randn(4, 13, 8, generator=torch.Generator().manual_seed(layer)) for layer in LAYERS}
    a, b = random_sae(width=12, seed=1), random_sae(width=12, seed=2)
    for _ in range(2):
        matched_by(pair_of(a, b, layers), tmp_path)
    assert len(calls) == solved
