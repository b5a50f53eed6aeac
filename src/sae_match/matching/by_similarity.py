"""The one-to-one matching with the largest sum of given similarities, exact and with its proof."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae_match.matching.dense import BLOCK_ROWS, assigned_permutation, dual_deficit
from sae_match.matching.memory import refuse_above
from sae_match.matching.permutation import Permutation

GRID = 2.0**36
"""Similarities in -1..1 are rounded to whole multiples of one over this: sums over 2^17 pairs are exact in float64."""
ADVICE = "narrower SAEs, a machine with more memory, or leave correlation out of evaluation.controls"


class SimilarityMatching(NamedTuple):
    """A matching, its mean similarity, and how far (at most) that of another one could be above it."""

    permutation: Permutation
    mean: float
    gap: float


def required_bytes(n_a: int, n_b: int) -> int:
    """Peak memory: the similarities in float32, the costs in float64, and blocks of temporaries."""
    n, m = sorted((n_a, n_b))
    return 12 * n * m + 2 * 8 * min(BLOCK_ROWS, n) * m


def check_memory(n_a: int, n_b: int, limit_gib: float | None) -> None:
    """Refuse widths whose matrices do not fit; nothing is allocated.

    Raises:
        UserError: they need more.
    """
    refuse_above(limit_gib, required_bytes(n_a, n_b), "correlation", (n_a, n_b), ADVICE)


def match_by_similarity(similarity: Float[Tensor, "F_a F_b"]) -> SimilarityMatching:
    """Every feature of the narrower side gets a partner so that the sum of similarities is largest (scipy, dense).

    Args:
        similarity: values in -1..1, float32.
    """
    n_a, n_b = similarity.shape
    wide = similarity if n_a <= n_b else similarity.T
    cost = np.empty(tuple(wide.shape), dtype=np.float64)
    for start in range(0, len(wide), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        cost[rows] = wide[rows].cpu().to(torch.float64).mul(-GRID).round().numpy()
    _, assigned = linear_sum_assignment(cost)
    total = -cost[np.arange(len(cost)), assigned].sum() / GRID
    deficit = dual_deficit(cost, assigned, BLOCK_ROWS) / GRID
    permutation = assigned_permutation(assigned, n_a, n_b)
    return SimilarityMatching(permutation, float(total / len(cost)), float(deficit / len(cost)))
