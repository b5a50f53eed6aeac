"""The rotated-dictionary null: how sure a matcher is of partners between dictionaries that correspond in nothing.

B's decoder rows and encoder columns are turned by one random orthogonal matrix. Norms and inner products within B stay
what they were, so the null has B's own geometry, but no direction of B has anything to do with one of A. What a matcher
still finds there is what it finds by chance among so many features of such a geometry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sae_match.matching import Matching
from sae_match.matching.feature_pair import FeaturePair
from sae_match.matching.similarity import Comparison
from sae_match.matching.solution import Solver
from sae_match.metrics.metric import MetricRow
from sae_match.saes import SparseAutoencoder

MatchFeatures = Callable[[Comparison, Solver, FeaturePair], Matching]
"""`match_features`, or one that knows earlier answers."""


def rotated(sae: SparseAutoencoder, seed: int) -> SparseAutoencoder:
    """The SAE with decoder rows D Q and encoder columns Q^T W for one seeded random orthogonal Q.

    Per-feature numbers (encoder bias, threshold, folding scale) and b_dec are unchanged. On residual streams its
    features fire as those of an unrelated dictionary would: some never, some everywhere.
    """
    q = random_rotation(sae.d_model, seed).to(sae.device)
    return sae.replace(W_dec=sae.W_dec @ q, W_enc=q.T @ sae.W_enc, source=f"{sae.source}, rotated with seed {seed}")


def random_rotation(d: int, seed: int) -> Float[Tensor, "d d"]:
    """An orthogonal matrix of Haar measure, float32, on the CPU.

    QR of a Gaussian matrix, with the signs that make the diagonal of R positive: without them the distribution depends
    on the QR algorithm (Mezzadri, 2007, "How to generate random matrices from the classical compact groups").
    """
    gaussian = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(gaussian)
    return (q * r.diagonal().sign()).to(torch.float32)


def exceeded_by(confidence: Float[Tensor, " F_a"], alpha: float) -> float:
    """The lowest confidence that at most a share `alpha` of all features exceed; minus infinity where no more than
    that share has a partner (NaN = none)."""
    allowed = math.floor(alpha * len(confidence))
    return float(confidence.nan_to_num(nan=-math.inf).sort(descending=True).values[allowed])


def above_null(confidence: Float[Tensor, " F_a"], threshold: float) -> float:
    """Share of A's features whose confidence is above the null's threshold; one without a partner (NaN) is not."""
    return int((confidence > threshold).sum()) / len(confidence)


def null_rows(
    found: Mapping[str, Float[Tensor, " F_a"]],
    nulls: Mapping[str, Float[Tensor, " F_a"]],
    layers: tuple[int, int],
    alpha: float,
) -> list[MetricRow]:
    """Metrics `null_threshold` and `above_null` of the matchers of one pair.

    Args:
        found: confidence of every feature of A by variant.
        nulls: the same with B rotated, of the variants that get rows.
    """
    rows: list[MetricRow] = []
    for variant, null in nulls.items():
        threshold = exceeded_by(null, alpha)
        values = {"null_threshold": threshold, "above_null": above_null(found[variant], threshold)}
        rows += [MetricRow(*layers, variant, name, value, len(null)) for name, value in values.items()]
    return rows
